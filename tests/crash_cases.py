"""A server that runs commands in processes which end, or find the disk full, at a chosen operation on files."""
import builtins
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KILLED = 99
KINDS = ('kill', 'full')    # at a rename, fsync, unlink or mkdir; at a write


class Server:
    """Imports are done once: a command then takes the time of its work."""

    def __enter__(self) -> 'Server':
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(20)

    def run(self, argv: Sequence[str], folder: Path, kind: str = '', at: int = 0) -> tuple[int, str, int]:
        """Run `tinyvit-zoo`; return its exit code, what it said on stderr, and how many operations were counted."""
        assert self.process.stdin and self.process.stdout
        error = folder.with_suffix('.err')
        print(json.dumps([list(argv), str(folder), kind, at, str(error)]), file=self.process.stdin, flush=True)
        code, count = json.loads(self.process.stdout.readline())
        return code, error.read_text(), count


class Full:
    """A file on a disk that becomes full at a write: half of that is written."""

    def __init__(self, file: Any, step: Callable[[], bool]) -> None:
        self.file, self.step, self.full = file, step, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> 'Full':
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, content: Any) -> int:
        self.full = self.step() or self.full
        if self.full:
            self.file.write(content[:len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)


def install(folder: str, kind: str, at: int) -> list[int]:
    """Count the operations below `folder`, and act at number `at` (from 1)."""
    count = [0]

    def step() -> bool:
        count[0] += 1
        return count[0] == at

    def hooked(name: str) -> None:
        original = getattr(os, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            if (isinstance(args[0], int) or str(args[0]).startswith(folder)) and step():
                os._exit(KILLED)
            return original(*args, **kwargs)
        setattr(os, name, operation)

    if kind == 'kill':
        for name in ('replace', 'fsync', 'unlink', 'mkdir'):
            hooked(name)
    elif kind == 'full':
        original = builtins.open

        def opened(file: Any, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
            found = original(file, mode, *args, **kwargs)
            return Full(found, step) if str(file).startswith(folder) and mode.strip('bt') != 'r' else found
        builtins.open = io.open = opened    # type: ignore[assignment]
    return count


def serve() -> None:
    import matplotlib.pyplot as plt
    import torch
    from timm.models import create_model

    from tinyvit_zoo.cli.main import main
    from tinyvit_zoo.training.cost import pflop_of

    torch.set_num_threads(1)
    create_model('cct_2_3x2', device='meta')
    for axes in plt.subplots(1, 2, layout='constrained')[1]:
        axes.plot([1, 2], label='a')
        axes.legend()
    plt.savefig(io.BytesIO())   # reads its fonts
    pflop_of('cct_2_3x2.c10')
    for line in sys.stdin:
        argv, folder, kind, at, error = json.loads(line)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            for number, path in ((1, os.devnull), (2, error)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout = open(1, 'w', closefd=False)
            sys.stderr = open(2, 'w', closefd=False)
            count, code = install(folder, kind, at), 1
            try:
                code = main(argv)
            except SystemExit as e:
                code = int(e.code or 0)
            except BaseException:
                import traceback
                traceback.print_exc()
            sys.stderr.flush()
            os.write(write, str(count[0]).encode())
            os._exit(code)
        os.close(write)
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), int(os.read(read, 20) or 0)]), flush=True)
        os.close(read)


if __name__ == '__main__':
    serve()
