"""The run directory: the recipe as used, the machine, a line of log an epoch, pictures, weights and results."""
import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import ZooError
from ..recipes import BaseRecipe
from ..recipes.settings import defaults
from ..runtime.documents import digest, fault, write_document
from ..runtime.files import (
    PARTIAL,
    append,
    check_path,
    naming_unwritable,
    new_figure,
    remove_partial,
    write_picture,
    write_whole,
)
from ..runtime.lock import LOCK, lock, unlock
from ..runtime.text import Progress, one_line, printable, show
from ..runtime.world import machine
from ..weights import read_weights
from ..weights.resolve import RESULT, read_recipe, read_result, resolve
from ..weights.trained import NAME
from .trackers import Tracker, open_tracker, tracker_module

_RECIPE, _LOG = 'recipe.json', 'log.jsonl'
_ROW = {'epoch': int, 'step': int, 'train_loss': float}     # a line of the log, among others
_FIGURES = 'top1', 'spread', 'accuracy', 'auroc'    # ends of their names in a line of the log
_DRAW_SECONDS = 10      # between two pictures of the curves
_DIGEST_BYTES, _KEPT = 32, 2   # of checkpoints
PRETRAINING = 'pretraining'     # the folder of the pre-training that comes first


class Run:
    """`DIR/recipe.json`, `train.log`, `log.jsonl`, `curves.png`, checkpoints, and at the end weights and result."""

    def __init__(self, folder: Path, quiet: bool = False, track: str = '') -> None:
        check_path(folder)
        self.folder, self.quiet = folder, quiet
        self.progress: Progress | None = None
        self.pictures, self.drawn = True, time.monotonic()
        self.rows: list[dict[str, Any]] = []    # of log.jsonl
        self.identity = ''      # a digest of recipe.json, for the checkpoints
        self.locked: IO[str] | None = None
        self.made: list[Path] = []      # folders, the inner one first
        self.track = track if not quiet else ''
        self.tracking = tracker_module(self.track) if self.track else None
        self.tracker: Tracker | None = None

    def open(self, recipe: BaseRecipe, facts: Mapping[str, Any], resume: bool) -> None:
        """Begin the directory, or go on with it, and lock it until `close`.

        ZooError where it holds another run, or one that would be lost, or another process writes to it.
        """
        wanted = json.loads(json.dumps({'recipe': dataclasses.asdict(recipe), **facts}))
        self.claim(resume)
        if not (resume and (self.folder / _RECIPE).exists()):
            write_document(self.folder / _RECIPE, {**wanted, 'machine': machine()})
        else:
            self._check_same(type(recipe), wanted)
        self.identity = digest(read_recipe(self.folder))
        if self.track:
            self.tracker = open_tracker(self.track, self.tracking, self.folder, wanted['recipe'])

    def claim(self, resume: bool) -> None:
        """Make the directory, lock it until `close`, and remove what a killed process has begun to write there."""
        self.check(resume)
        if self.locked:
            return
        self.made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with naming_unwritable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.locked = lock(self.folder)
        self.check(resume)  # another may have begun it meanwhile
        remove_partial(self.folder)

    def _check_same(self, kind: type[BaseRecipe], wanted: dict[str, Any]) -> None:
        """Raise ZooError if the run in the directory is another one."""
        written = read_recipe(self.folder)
        same = {key: wanted['recipe'][key] for key in ('about', 'published')}   # decide no weights
        written['recipe'] = {**defaults(kind), **written['recipe'], **same}
        wanted = {**_stated(wanted, written), 'recipe': wanted['recipe']}
        if 'contents' in wanted.get('data', {}):    # another name of the same images
            wanted['data']['source'] = written['data']['source']
        changes = differences({key: written.get(key) for key in wanted}, wanted)
        if changes:
            same_recipe = wanted['recipe'] == written['recipe']
            other = 'with other data, weights or options' if same_recipe else 'of another recipe'
            raise ZooError(f'{self.folder} is a run {other} ({"; ".join(changes)}): choose another output.')
        if versions := differences(written.get('machine') or machine(), machine()):
            self.say(f'Resumed with other versions or hardware ({"; ".join(versions)}): the last digits may differ.')

    def check(self, resume: bool) -> None:
        """Raise ZooError where the directory cannot be begun, or not gone on with."""
        if (self.folder / _RECIPE).exists():
            early = _RECIPE, LOCK, 'train.log', NAME    # the files of a run that was refused before its first step
            if not resume and any(name not in early and not name.startswith(PARTIAL) for name in _names(self.folder)):
                raise ZooError(f'{self.folder} holds a run: resume it (--resume, resume=True), or choose another '
                               f'output.')
        elif self.folder.exists() and not self.folder.is_dir():
            raise ZooError(f'{self.folder} is a file: choose another output.')
        elif any(map(_foreign, _names(self.folder))):
            raise ZooError(f'{self.folder} holds other files but no run: choose an empty or new output.')

    def close(self) -> None:
        """Release the lock. Remove the directory if this run made it and it is empty."""
        self._track(lambda tracker: tracker.close())
        self.tracker = None
        if self.locked:
            unlock(self.locked)
            self.locked = None
            if self.made and not (self.folder / _RECIPE).exists():
                with suppress(OSError):     # other files are there by now
                    (self.folder / LOCK).unlink()
                    for path in self.made:
                        path.rmdir()

    def finish(self, result: Mapping[str, Any]) -> None:
        """Draw the curves, and write result.json: the training is over and its weights are on the disk."""
        if any(key.endswith(_FIGURES) for row in self.rows for key in row):
            self.draw()
        numbers = {f'final_{split}_{key}': value for split, figures in result.get('figures', {}).items()
                   for key, value in figures.items() if isinstance(value, (int, float))}
        self._track(lambda tracker: tracker.log(numbers, self.rows[-1]['step']))
        write_document(self.folder / RESULT, result)

    def finished(self) -> dict[str, Any] | None:
        """Return the result of a finished run whose weights can be read; None, and a line why, where it goes on."""
        if not (self.folder / RESULT).exists():
            return None
        try:
            result = read_result(self.folder)
            read_weights(resolve(self.folder.absolute()).file or '')
            return result
        except ZooError as e:
            self.say(f'Repeating the end of the run: {e}')
            return None

    def say(self, text: str) -> None:
        """Print a line, and append it to train.log."""
        if not self.quiet:
            if self.progress:
                self.progress.clear()
            show(text)
            if self.folder.is_dir():
                append(self.folder / 'train.log', f'{time.strftime("%Y-%m-%d %H:%M:%S")} {printable(text)}')

    def log(self, row: dict[str, Any]) -> None:
        """Log an epoch: a line of log.jsonl, one to read, and from time to time the curves."""
        self.rows.append(row)
        append(self.folder / _LOG, json.dumps(row))
        self.show(row['step'])
        shown = [key for key in row if key.endswith(_FIGURES)]
        texts = [f'{row[key]:.{4 if key.endswith("auroc") else 2}f}' for key in shown]
        figures = ''.join(f', {key.replace("_", " ")} {text}' for key, text in zip(shown, texts, strict=True))
        self.say(f'epoch {row["epoch"]}: loss {row["train_loss"]:.4f}{figures}, '
                 f'{row["images_per_second"]:.0f} images/s{self.progress.left() if self.progress else ""}')
        numbers = {key: value for key, value in row.items() if key != 'step' and isinstance(value, (int, float))}
        self._track(lambda tracker: tracker.log(numbers, row['step']))
        if figures and time.monotonic() - self.drawn > _DRAW_SECONDS:
            self.draw()

    def _track(self, act: Callable[[Tracker], None]) -> None:
        """Call `act` with the tracker, if any. One that fails is dropped, and the run continues."""
        try:
            if self.tracker:
                act(self.tracker)
        except Exception as e:  # each library has its own
            self.tracker = None
            self.say(f'Tracking by {self.track} has failed ({one_line(e)}): the run continues without it.')

    def rewind(self, rows: list[dict[str, Any]]) -> None:
        """Rewrite the log with these epochs: a resumed run repeats the later ones, and a kill may have cut a line."""
        self.rows = list(rows)
        write_whole(self.folder / _LOG, ''.join(f'{json.dumps(row)}\n' for row in rows).encode())

    @contextmanager
    def progressing(self, step: int, total: int) -> Iterator[None]:
        """Show the progress meanwhile, on a terminal: elsewhere there is a line for each epoch."""
        with Progress(total, unit='step', done=step, quiet=self.quiet, lines=False) as self.progress:
            yield
        self.progress = None

    def show(self, step: int, note: str = '') -> None:
        if self.progress:
            self.progress.show(step, note)

    def figure(self, rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
        """Make a figure and its axes; (None, None), and a line once, where matplotlib is missing."""
        try:
            return new_figure(rows, columns, size)
        except ZooError as e:
            if self.pictures:
                self.say(str(e))
            self.pictures = False
            return None, None

    def draw(self) -> None:
        """Draw curves.png: loss and accuracy over the epochs."""
        self.drawn = time.monotonic()
        rows, keys = self.rows, list(dict.fromkeys(key for row in self.rows for key in row))
        panels = 1 + any(key.endswith(('_top1', '_accuracy')) for key in keys)
        figure, axes = self.figure(1, panels, (5 * panels, 3.6))
        if figure is None:
            return
        left, right = axes[0, 0], axes[0, -1]
        colours = {'val': 'C1', 'test': 'C2'}   # in both panels
        left.plot([r['epoch'] for r in rows], [r['train_loss'] for r in rows], label='training')
        for key in keys:
            points = [(r['epoch'], r[key]) for r in rows if key in r]
            panel = left if key.endswith('_loss') else right if key.endswith(('_top1', '_accuracy')) else None
            if panel and key != 'train_loss':
                name = key.rpartition('_')[0]
                panel.plot(*zip(*points, strict=True), marker='.', label=name, color=colours.get(name))
        right.set(ylabel='accuracy, %' if any(key.endswith('_accuracy') for key in keys) else 'top-1, %')
        left.set(ylabel='loss')
        for panel in axes[0]:
            panel.set_xlabel('epoch')
            panel.grid(alpha=0.3)
            panel.legend()
            panel.xaxis.get_major_locator().set_params(integer=True)
        write_picture(figure, self.folder / 'curves.png', dpi=110)

    def draw_images(self, step: int, rows: Mapping[str, Tensor], cfg: Mapping[str, Any]) -> None:
        """Draw `reconstructions/STEP.png`: rows of normalized images [B, C, H, W] by their titles."""
        if not rows:
            return
        columns = len(next(iter(rows.values())))
        figure, axes = self.figure(len(rows), columns, (1.1 * columns + 1, 3.6))
        if figure is None:
            return
        for (name, images), line in zip(rows.items(), axes, strict=True):
            line[0].set_ylabel(name)
            for pixels, panel in zip(_shown(images, cfg).permute(0, 2, 3, 1), line, strict=True):
                panel.imshow(pixels.float().cpu().numpy())
                panel.set(xticks=[], yticks=[])
        figure.suptitle(f'step {step}')
        folder = self.folder / 'reconstructions'
        with naming_unwritable(folder):
            folder.mkdir(exist_ok=True)
        write_picture(figure, folder / f'{step:08d}.png', dpi=110)


def _shown(images: Tensor, cfg: Mapping[str, Any]) -> Tensor:
    """Return normalized images as RGB of 0 to 1: dark ones brightened, of other channels their mean."""
    mean, std = (images.new_tensor(cfg[key])[:, None, None] for key in ('mean', 'std'))
    images = images * std + mean
    images = images if images.shape[1] in (1, 3) else images.mean(1, keepdim=True)
    brightest = sum(cfg['mean']) / len(cfg['mean']) + 3 * max(cfg['std'])   # the same for all rows
    return (images / min(1., brightest)).clamp(0, 1).expand(-1, 3, -1, -1)


def _foreign(name: str) -> bool:
    """Return whether a file is other than those that a run killed before its recipe.json may leave."""
    return name not in (PRETRAINING, LOCK) and not name.startswith(PARTIAL)


def _names(folder: Path) -> list[str]:
    """List what is in a folder, if there is one; ZooError where that cannot be known."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise ZooError(f'{folder} cannot be read ({e.strerror}): make it readable, or choose another output.') from e


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read log.jsonl. A last line that a kill has cut is left out; ZooError for any other that is damaged."""
    path, rows = folder / _LOG, []
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            problem = fault(row, _ROW, 'it') or (f'it is of epoch {row["epoch"]}' if row['epoch'] != number else '')
        except (ValueError, RecursionError) as e:
            problem = str(e)[:80]
        if problem and number == len(lines) and not line.endswith(b'\n'):
            break
        if problem:
            raise ZooError(f'{path}, line {number} is damaged ({problem}): restore it from a copy of the run, or '
                           f'remove it.')
        rows.append(row)
    return rows


def _stated(new: dict[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Return `new` without the keys that `old` does not have: runs of earlier versions do not state all."""
    return {key: _stated(value, old[key]) if isinstance(value, dict) and isinstance(old[key], dict) else value
            for key, value in new.items() if key in old}


def differences(old: Any, new: Any, name: str = '') -> list[str]:
    """Return 'lr 0.001 -> 0.002' for each value in which two JSON documents differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in dict.fromkeys([*old, *new]) for line in differences(old.get(key), new.get(key), key)]
    return [] if old == new else [f'{name} {old} -> {new}']


# -- checkpoints: they survive a kill at any instant: written beside and renamed, checksummed, two kept ----------------
def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `checkpoint-STEP.pt`: a SHA-256 of the rest, then torch's format. All but the last two are removed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    write_whole(folder / f'checkpoint-{step:08d}.pt', hashlib.sha256(content).digest() + content)
    for old in checkpoints(folder)[:-_KEPT]:
        with naming_unwritable(old):
            old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """List them, oldest first."""
    return [folder / name for name in _names(folder) if name.startswith('checkpoint-') and name.endswith('.pt')]


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the newest sound checkpoint; None where there is none at all. A damaged one is named and passed over.

    ZooError for one of another run; those of earlier versions do not state theirs.
    """
    paths = checkpoints(folder)
    for path in reversed(paths):
        content = path.read_bytes() if path.is_file() else b''     # a pipe would wait for a writer
        checksum, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() == checksum:
            state = torch.load(io.BytesIO(body), map_location='cpu', weights_only=True)
            if state.get('run') and state['run'] != digest(read_recipe(folder)):
                raise ZooError(f'{path} is a checkpoint of another run: remove it, or restore it from a copy of this '
                               f'run.')
            return state
        say(f'{path} is damaged: using the one before it.')
    if paths:
        raise ZooError(f'No checkpoint in {folder} is sound ({len(paths)} damaged): remove them to start over.')
    return None
