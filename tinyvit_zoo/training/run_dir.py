"""The run directory: the recipe as used, the machine, a line of log an epoch, pictures, weights and results."""
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ZooError
from ..recipes import BaseRecipe
from ..runtime.files import new_figure, write_picture, write_whole
from ..runtime.text import Progress
from ..runtime.world import machine
from ..weights.resolve import read_recipe

_DIGEST_BYTES, _KEPT = 32, 2   # of checkpoints
PRETRAINING = 'pretraining'     # the folder of the pre-training that comes first


class Run:
    """`DIR/recipe.json`, `train.log`, `log.jsonl`, `curves.png`, checkpoints, and at the end weights and result."""

    def __init__(self, folder: Path, quiet: bool = False, tensorboard: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.progress: Progress | None = None
        self.pictures = True
        self.writer: Any = None
        self.make_writer: Any = None
        if tensorboard and not quiet:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as e:
                raise ZooError("--tensorboard needs its package: pip install 'tinyvit-zoo[train]'.") from e
            self.make_writer = SummaryWriter

    def open(self, recipe: BaseRecipe, facts: Mapping[str, Any], resume: bool) -> None:
        """Begin the directory, or go on with it. ZooError where it holds another run, or one that would be lost."""
        wanted = json.loads(json.dumps({'recipe': dataclasses.asdict(recipe), **facts}))
        path = self.folder / 'recipe.json'
        self.check(resume)
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps({**wanted, 'machine': machine()}, indent=1).encode())
            return
        written = read_recipe(self.folder)
        newer = {f.name: f.default for f in dataclasses.fields(recipe) if f.default is not dataclasses.MISSING}
        same = {key: wanted['recipe'][key] for key in ('about', 'published')}   # decide no weights
        written['recipe'] = {**json.loads(json.dumps(newer)), **written['recipe'], **same}
        changes = differences({key: written.get(key) for key in wanted}, wanted)
        if changes:
            raise ZooError(f'{self.folder} is a run of another recipe ({"; ".join(changes)}): choose another --output.')

    def check(self, resume: bool) -> None:
        """Raise ZooError where the directory cannot be begun, or not gone on with."""
        if (self.folder / 'recipe.json').exists():
            if not resume:
                raise ZooError(f'{self.folder} holds a run: go on by --resume, or choose another --output.')
        elif self.folder.exists() and any(path.name != PRETRAINING for path in self.folder.iterdir()):
            raise ZooError(f'{self.folder} holds other files and no run: choose an empty or new --output.')

    def say(self, text: str) -> None:
        """Print a line, and append it to train.log."""
        if not self.quiet:
            if self.progress:
                self.progress.clear()
            print(text, flush=True)
            if self.folder.is_dir():
                with open(self.folder / 'train.log', 'a', encoding='utf-8') as file:
                    file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')

    def log(self, row: dict[str, Any]) -> None:
        """Log an epoch: a line of log.jsonl, one to read, and the curves."""
        with open(self.folder / 'log.jsonl', 'a', encoding='utf-8') as file:
            file.write(json.dumps(row) + '\n')
        self.show(row['step'])
        shown = [key for key in row if key.endswith(('top1', 'spread'))]
        figures = ''.join(f', {key.replace("_", " ")} {row[key]:.2f}' for key in shown)
        self.say(f'epoch {row["epoch"]}: loss {row["train_loss"]:.4f}{figures}, '
                 f'{row["images_per_second"]:.0f} images/s{self.progress.left() if self.progress else ""}')
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
        """Drop the epochs that a resumed run does again."""
        kept = ''.join(json.dumps(row) + '\n' for row in self.rows() if row['step'] <= step)
        write_whole(self.folder / 'log.jsonl', kept.encode())

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
        except ZooError:
            if self.pictures:
                self.say("No pictures without matplotlib: pip install 'tinyvit-zoo[train]'.")
            self.pictures = False
            return None, None

    def draw(self) -> None:
        """Draw curves.png: loss and accuracy over the epochs."""
        figure, axes = self.figure(1, 2, (10, 3.6))
        if figure is None:
            return
        rows, (left, right) = self.rows(), axes[0]
        left.plot([r['epoch'] for r in rows], [r['train_loss'] for r in rows], label='training')
        for key in dict.fromkeys(key for r in rows for key in r):
            points = [(r['epoch'], r[key]) for r in rows if key in r]
            panel = left if key.endswith('_loss') else right if key.endswith('_top1') else None
            if panel and key != 'train_loss':
                panel.plot(*zip(*points, strict=True), marker='.', label=key.rpartition('_')[0])
        left.set(xlabel='epoch', ylabel='loss')
        right.set(xlabel='epoch', ylabel='top-1, %')
        for panel in (left, right):
            panel.grid(alpha=0.3)
            panel.legend()
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
            mean, std = (images.new_tensor(cfg[key])[:, None, None] for key in ('mean', 'std'))
            line[0].set_ylabel(name)
            for pixels, panel in zip((images * std + mean).clamp(0, 1).permute(0, 2, 3, 1), line, strict=True):
                panel.imshow(pixels.float().cpu().numpy())
                panel.set(xticks=[], yticks=[])
        figure.suptitle(f'step {step}')
        folder = self.folder / 'reconstructions'
        folder.mkdir(exist_ok=True)
        write_picture(figure, folder / f'{step:08d}.png', dpi=110)


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
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """List them, oldest first."""
    return sorted(folder.glob('checkpoint-*.pt'))


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the newest sound checkpoint; None where there is none at all. A damaged one is named and passed over."""
    paths = checkpoints(folder)
    for path in reversed(paths):
        content = path.read_bytes()
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() == digest:
            return torch.load(io.BytesIO(body), map_location='cpu', weights_only=True)
        say(f'{path} is damaged: the one before it is used.')
    if paths:
        raise ZooError(f'No checkpoint in {folder} is sound ({len(paths)} damaged): remove them to begin anew.')
    return None
