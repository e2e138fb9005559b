"""Commands in processes quick to start, which end, or find the disk full, at a chosen operation on files."""
import builtins
import errno
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KILLED = 99
KINDS = ('kill', 'full')    # at a rename, fsync, unlink or mkdir; at a write


class Server:
    """Does the imports once: a command then takes the time of its work."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(20)

    def _ask(self, question: object) -> Any:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, argv: Sequence[str], folder: Path, kind: str = '', at: int = 0, **env: str) -> int:
        """Run `tinyvit-zoo`, or a script, in a new process; return its number. `folder`: the operations to count."""
        return self._ask([list(argv), str(folder), kind, at, str(folder.with_suffix('.err')), env])

    def wait(self, pid: int) -> tuple[int, int]:
        """Wait for a process; return its exit code, and how many operations were counted."""
        code, count = self._ask(pid)
        return code, count

    def run(self, argv: Sequence[str], folder: Path, kind: str = '', at: int = 0) -> tuple[int, str, int]:
        """Run a command to its end; return its exit code, what it said on stderr, and the operations."""
        code, count = self.wait(self.start(argv, folder, kind, at))
        return code, folder.with_suffix('.err').read_text(), count

    def run_two(self, argv: Sequence[str], folder: Path) -> None:
        """Run a command in two processes, as by `torchrun`."""
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = str(free.getsockname()[1])
        ranks = [self.start(argv, folder.with_name(f'{folder.name}-{rank}'), RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2',
                            MASTER_ADDR='localhost', MASTER_PORT=port) for rank in '01']
        codes = [self.wait(rank)[0] for rank in ranks]
        said = [folder.with_name(f'{folder.name}-{rank}.err').read_text()[-2000:] for rank in '01']
        assert codes == [0, 0] and said == ['', ''], (codes, said)


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
    counts = {}
    for line in sys.stdin:
        question = json.loads(line)
        if isinstance(question, int):
            _, status = os.waitpid(question, 0)
            with os.fdopen(counts.pop(question)) as count:
                print(json.dumps([os.waitstatus_to_exitcode(status), int(count.read() or 0)]), flush=True)
            continue
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os._exit(work(main, write, *question))
        os.close(write)
        counts[child] = read
        print(child, flush=True)


def work(main: Callable[[list[str]], int], write: int, argv: list[str], folder: str, kind: str, at: int, error: str,
         env: dict[str, str]) -> int:
    """In the new process: run the command or the script, and write the number of operations."""
    for number, path in ((0, os.devnull), (1, os.devnull), (2, error)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout = open(1, 'w', closefd=False)
    sys.stderr = open(2, 'w', closefd=False)
    os.environ.update(env)
    count, code = install(folder, kind, at), 1
    try:
        if argv[0].endswith('.py'):
            sys.argv = argv
            runpy.run_path(argv[0], run_name='__main__')
            code = 0
        else:
            code = main(argv)
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os.write(write, str(count[0]).encode())
    return code


if __name__ == '__main__':
    serve()
