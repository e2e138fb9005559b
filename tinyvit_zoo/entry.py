"""The process of a command. Imported before torch is: what OpenMP reads, it reads as it is loaded.

Threads that wait for work spin. Where other programs want the cores too, that makes a training several times slower,
so the commands let them sleep. A value that is set already wins.
"""
import os
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


IS_COMMAND = is_command(sys.argv, sys.orig_argv)
if IS_COMMAND:
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
