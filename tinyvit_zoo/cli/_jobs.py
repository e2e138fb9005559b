"""Several trainings at once, each in a process of its own."""
import argparse
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ZooError
from ..recipes import find_recipe
from ..runtime.text import show, table
from ._options import Incomplete


def train_all(args: argparse.Namespace) -> str:
    """Train the recipes in OUTPUT/RECIPE and return a table; Incomplete if some fail. The others go on."""
    names = [find_recipe(name).name for name in args.recipe]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ZooError(f'{twice} is given twice: run it again with another --seed and --output.')
    if os.environ.get('WORLD_SIZE', '1') != '1':
        raise ZooError('torchrun trains one recipe: give one, or start without torchrun.')
    jobs = Jobs(names, args)
    codes = jobs.run()
    text = table([('recipe', 'output', 'last line'), *(
        (name, str(jobs.folder / name), jobs.last.get(name, '')) for name in names)], left=(0, 1, 2))
    if jobs.stopped:
        show(text)
        print('tinyvit-zoo: stopped; continue with --resume.', file=sys.stderr)
        raise SystemExit(128 + jobs.stopped)
    if failed := [name for name, code in zip(names, codes, strict=True) if code]:
        raise Incomplete(f'{len(failed)} of {len(names)} trainings failed: {", ".join(failed)}.', text)
    return text


class Jobs:
    """Runs `tinyvit-zoo train` for each of the recipes, with the other options as they were given."""

    def __init__(self, names: list[str], args: argparse.Namespace) -> None:
        self.names, self.folder = names, args.output or Path('runs')
        cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        self.at_once = min(args.jobs or len(names), len(names))
        self.env = {'OMP_NUM_THREADS': str(max(1, cores // self.at_once)), **os.environ}
        ours = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        ours.add_argument('--jobs')
        ours.add_argument('--output')
        words = ours.parse_known_args(args.argv[1:])[1]
        count = len(args.recipe)
        begin = next(i for i in range(len(words)) if words[i:i + count] == args.recipe)
        self.options = [word for word in words[:begin] + words[begin + count:] if word != '--']
        self.running: list[subprocess.Popen[str]] = []
        self.last: dict[str, str] = {}      # lines of their output
        self.stopped = 0                    # by a signal of this number

    def run(self) -> list[int]:
        """Return the exit codes. Pass a signal on, and start no further training."""
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(self.at_once) as pool:
                return list(pool.map(self._run_one, self.names))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, _: Any) -> None:
        self.stopped = number
        for process in self.running:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def _run_one(self, name: str) -> int:
        if self.stopped:
            return 128 + self.stopped
        process = subprocess.Popen(
            [sys.executable, '-m', 'tinyvit_zoo', 'train', name, *self.options, '--output', str(self.folder / name)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
            env=self.env, start_new_session=True)    # a terminal's Ctrl-C comes from here alone
        self.running.append(process)
        if self.stopped:    # while it was started
            process.send_signal(self.stopped)
        assert process.stdout
        for line in process.stdout:
            self.last[name] = line.strip().removeprefix('tinyvit-zoo: ')
            show(line.rstrip() if line.startswith(name) else f'{name}: {line.rstrip()}')
        return process.wait()
