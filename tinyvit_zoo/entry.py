"""The process of a command. Imported before torch is: OpenMP reads its settings as it is loaded.

Threads that wait for work spin. Where another process wants a core, that makes a training many times slower, so that
they are to sleep; on a quiet machine sleeping would cost a few percent, half of the speed for the smallest models, so
that they spin there, a tenth as long as by default. A value that is set already wins.
"""
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import PurePath

BEGUN = time.monotonic()


def is_command(argv: Sequence[str], whole: Sequence[str]) -> bool:
    """Return whether this is `tinyvit-zoo`, or `python -m tinyvit_zoo`; `whole`: with what Python itself takes."""
    if argv[:1] == ['-m']:      # while the package of the module is imported
        return whole[-len(argv)].endswith('tinyvit_zoo')
    return bool(argv) and PurePath(argv[0]).stem == 'tinyvit-zoo'


def is_busy(path: str = '/proc/loadavg') -> bool:
    """Return whether another process runs or waits for a core now, where Linux says it."""
    running = []
    for _ in range(5):
        time.sleep(0.004)
        try:
            with open(path, encoding='ascii') as file:
                running.append(int(file.read().split()[3].partition('/')[0]))   # this process is one of them
        except (OSError, ValueError, IndexError):
            return False
    return sorted(running)[2] > 1


def stop(*_: object) -> None:
    """End at Ctrl-C, without the traceback of an import."""
    os._exit(128 + signal.SIGINT)


def check_folder() -> None:
    """Exit if the current folder has been removed: MKL cannot load there, and its error misleads."""
    try:
        os.getcwd()
    except OSError:
        print('tinyvit-zoo: The current folder has been removed: change to another one.', file=sys.stderr)
        raise SystemExit(2) from None


IS_COMMAND = is_command(sys.argv, sys.orig_argv)
if IS_COMMAND:
    check_folder()
if IS_COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop)  # until main takes over
if IS_COMMAND and not any(name in os.environ for name in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')):
    os.environ.update({'OMP_WAIT_POLICY': 'passive'} if is_busy() else {'GOMP_SPINCOUNT': '30000'})
