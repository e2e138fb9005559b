"""The run directory: the recipe as used, what it ran on, a line of log an epoch, curves, and what came out."""
from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ZooError
from ..recipes import BaseRecipe
from ..runtime.files import write_whole
from ..runtime.machine import machine

PRETRAINING = 'pretraining'     # the part of a run directory that the pre-training before it has


class Run:
    """`DIR/recipe.json`, `train.log`, `log.jsonl`, `curves.png`, checkpoints, and at the end weights and result."""

    def __init__(self, folder: Path, quiet: bool = False, tensorboard: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.progress = Progress(quiet)
        self.make_writer = _tensorboard() if tensorboard and not quiet else None
        self.writer: Any = None

    def open(self, recipe: BaseRecipe, facts: Mapping[str, Any], resume: bool) -> None:
        """Begin the directory, or go on with it; refused where it holds another run or one that would be lost."""
        wanted = json.loads(json.dumps({'recipe': dataclasses.asdict(recipe), **facts}))
        path = self.folder / 'recipe.json'
        self.check(resume)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({**wanted, 'machine': machine()}, indent=1).encode())
            return
        found = read_recipe(path)
        changes = differences({key: found.get(key) for key in wanted}, wanted)
        if changes:
            raise ZooError(f'{self.folder} is the run of another recipe ({"; ".join(changes)}): resume it as it was '
                           f'begun, or choose another --output.')

    def check(self, resume: bool) -> None:
        """ZooError where the directory cannot be begun, or not gone on with."""
        if (self.folder / 'recipe.json').exists():
            if not resume:
                raise ZooError(f'{self.folder} holds a run already: go on with it by --resume, or choose another '
                               f'--output.')
        elif self.folder.exists() and any(path.name != PRETRAINING for path in self.folder.iterdir()):
            raise ZooError(f'{self.folder} holds other files and no run: choose an empty or new --output.')

    def say(self, text: str) -> None:
        """A line for the terminal and for train.log."""
        if not self.quiet:
            self.progress.clear()
            print(text, flush=True)
            if self.folder.is_dir():
                with open(self.folder / 'train.log', 'a', encoding='utf-8') as file:
                    file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')

    def log(self, row: dict[str, Any]) -> None:
        """One epoch: a line of log.jsonl, one to read, and the curves."""
        with open(self.folder / 'log.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')
        shown = [key for key in row if key.endswith(('top1', 'spread'))]
        figures = ''.join(f', {key.replace("_", " ")} {row[key]:.2f}' for key in shown)
        self.say(f'epoch {row["epoch"]}: loss {row["train_loss"]:.4f}{figures}, '
                 f'{row["images_per_second"]:.0f} images/s{self.progress.left(row["step"])}')
        if self.make_writer:
            self.writer = self.writer or self.make_writer(str(self.folder / 'tensorboard'))
            for key in row.keys() - {'epoch', 'step'}:
                self.writer.add_scalar(key, row[key], row['step'])
            self.writer.flush()
        if figures:
            self.draw()

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / 'log.jsonl'
        lines = path.read_text(encoding='utf-8').splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith('}')]  # a kill may have cut the last one

    def cut_log(self, step: int) -> None:
        """Forget the epochs that a resumed run does again."""
        kept = ''.join(json.dumps(row) + '\n' for row in self.rows() if row['step'] <= step)
        write_whole(self.folder / 'log.jsonl', kept.encode())

    def pyplot(self) -> Any:
        """matplotlib's, for files; None, and said once, where it is missing."""
        try:
            import matplotlib
        except ImportError:
            if not hasattr(self, '_told'):
                self._told = True
                self.say("No pictures without matplotlib: pip install 'tinyvit-zoo[train]'.")
            return None
        matplotlib.use('agg')
        from matplotlib import pyplot

        return pyplot

    def draw(self) -> None:
        """curves.png: loss and accuracy over the epochs."""
        pyplot = self.pyplot()
        if pyplot is None:
            return
        rows = self.rows()
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
        left.plot([r['epoch'] for r in rows], [r['train_loss'] for r in rows], label='training')
        for key in dict.fromkeys(key for r in rows for key in r):
            points = [(r['epoch'], r[key]) for r in rows if key in r]
            axes = left if key.endswith('_loss') else right if key.endswith('_top1') else None
            if axes and key != 'train_loss':
                axes.plot(*zip(*points, strict=True), marker='.', label=key.rpartition('_')[0])
        left.set(xlabel='epoch', ylabel='loss')
        right.set(xlabel='epoch', ylabel='top-1, %')
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend()
        partial = self.folder / '.curves.partial.png'
        figure.savefig(partial, dpi=110)
        pyplot.close(figure)
        partial.replace(self.folder / 'curves.png')


class Progress:
    """Where the training stands: one line that is written over on a terminal, nothing elsewhere (epochs are lines)."""

    def __init__(self, quiet: bool) -> None:
        self.terminal = sys.stdout.isatty() and not quiet
        self.begun, self.first, self.total, self.shown = time.monotonic(), 0, 0, False

    def start(self, step: int, total: int) -> None:
        self.begun, self.first, self.total = time.monotonic(), step, total

    def show(self, step: int, text: str) -> None:
        if self.terminal:
            print(f'\r\033[K{100 * step / max(self.total, 1):3.0f}% {text}{self.left(step)}', end='', flush=True)
            self.shown = True

    def clear(self) -> None:
        if self.shown:
            print('\r\033[K', end='')
            self.shown = False

    def left(self, step: int) -> str:
        """', 3 min left', from the speed so far."""
        if step <= self.first or step >= self.total:
            return ''
        seconds = (time.monotonic() - self.begun) / (step - self.first) * (self.total - step)
        unit, name = next((u, n) for u, n in ((3600, 'h'), (60, 'min'), (0, 's')) if seconds >= 2 * u)
        return f', {seconds / max(unit, 1):.0f} {name} left'


def read_recipe(path: Path) -> dict[str, Any]:
    """A run directory's recipe.json."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(found, dict) and isinstance(found.get('recipe'), dict):
            return found
    except ValueError:
        pass
    raise ZooError(f'{path} is damaged, expected the recipe of a run: begin anew in another --output.')


def differences(old: Any, new: Any, name: str = '') -> list[str]:
    """'lr 0.001 -> 0.002' for each value in which two JSON documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in dict.fromkeys([*old, *new])
                for line in differences(old.get(key), new.get(key), key)]
    return [] if old == new else [f'{name} {old} -> {new}']


def _tensorboard() -> Any:
    """The class that writes events; ZooError where its package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise ZooError("--tensorboard needs its package: pip install 'tinyvit-zoo[train]'.") from e
    return SummaryWriter
