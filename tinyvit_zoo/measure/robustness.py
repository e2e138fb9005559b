"""Errors on corrupted images: the published CIFAR-10-C and CIFAR-100-C, or corruptions of our own made on the fly."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.images import ArrayImages
from ..data.seeds import derived
from ..data.splits import Split
from ..errors import ZooError
from ..runtime.picture import new_figure, write_picture
from ..runtime.text import one_line
from .corruptions import CORRUPTIONS, FAMILY, SEVERITIES, corrupt

OURS = "corruptions of this package's own, not the official set"
_EXTRA = 'extra'        # what the official sets have beyond the fifteen
_BATCHES = Iterable[tuple[Tensor, Tensor]]


def corrupted(batches: _BATCHES, name: str, severity: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 batches with one of our corruptions. The same images, batch size, seed and device give the same."""
    for number, (images, labels) in enumerate(batches):
        seeds = derived(seed, zlib.crc32(name.encode()), number)
        yield corrupt(images, name, severity, torch.Generator(images.device).manual_seed(seeds)), labels


@dataclass(frozen=True)
class Published:
    """A folder in the layout of CIFAR-10-C: `labels.npy`, and a file a corruption, severity after severity."""
    folder: Path
    labels: Tensor
    files: tuple[str, ...]

    def split(self, name: str, severity: int) -> Split:
        count = len(self.labels) // SEVERITIES
        part = slice((severity - 1) * count, severity * count)
        pixels = torch.from_numpy(np.array(_array(self.folder / f'{name}.npy')[part]))
        return Split(ArrayImages(pixels, f'{name} {severity}'), self.labels[part])


def open_published(folder: Path, num_classes: int) -> Published:
    """The fifteen corruptions and whatever others lie there, checked; pixels are read when they are needed."""
    if not (folder / 'labels.npy').is_file():
        raise ZooError(f'There is no {folder / "labels.npy"}: give the folder of CIFAR-10-C or CIFAR-100-C, unpacked, '
                       f'or --corruptions alone for {OURS}.')
    found = sorted(path.stem for path in folder.glob('*.npy') if path.stem != 'labels')
    missing = [name for name in CORRUPTIONS if name not in found]
    if missing:
        raise ZooError(f'{folder} lacks {", ".join(f"{name}.npy" for name in missing)}: the mean is over all fifteen; '
                       f'unpack the whole set.')
    labels = np.asarray(_array(folder / 'labels.npy'))
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or not len(labels) or len(labels) % SEVERITIES:
        raise ZooError(f'{folder / "labels.npy"} is {labels.dtype} {list(labels.shape)}: expected a whole number for '
                       f'each image, five severities of as many.')
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ZooError(f'{folder / "labels.npy"} has classes {labels.min()} to {labels.max()}, the model has '
                       f'{num_classes}: give the set of its classes.')
    for name in found:
        pixels = _array(folder / f'{name}.npy')
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != len(labels):
            raise ZooError(f'{folder / name}.npy is {pixels.dtype} {list(pixels.shape)}, expected uint8 '
                           f'[{len(labels)}, H, W, 3]: fetch it again.')
    names = (*CORRUPTIONS, *(name for name in found if name not in CORRUPTIONS))
    return Published(folder, torch.from_numpy(labels.astype(np.int64)), names)


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise ZooError(f'{path} is no array of numbers, or damaged ({one_line(e)}): fetch it '
                       f'again.') from e


def corruption_errors(
        names: Sequence[str], batches: Callable[[str, int], Any], top1: Callable[[Any], float],
        show: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Error in percent for each corruption and severity: `top1` of what `batches(name, severity)` gives."""
    errors: dict[str, list[float]] = {name: [] for name in names}
    for done, (name, severity) in enumerate((n, s) for n in names for s in range(1, SEVERITIES + 1)):
        errors[name].append(100 - top1(batches(name, severity)))
        show(done + 1)
    return errors


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """The mean over the fifteen corruptions and five severities in percent, not divided by another model's errors.

    Corruptions beyond the fifteen (the official sets have four for validation) are left out.
    """
    return sum(sum(errors[name]) for name in CORRUPTIONS) / (len(CORRUPTIONS) * SEVERITIES)


def errors_table(errors: Mapping[str, Sequence[float]], clean: float, source: str) -> str:
    """A line a corruption; the means at the end."""
    head = ''.join(f'{severity:>7}' for severity in range(1, SEVERITIES + 1))
    lines = [f'Error in % by severity ({source})', f'{"":29}{head}   mean']
    for name, row in errors.items():
        lines.append(f'{name:20}{FAMILY.get(name, _EXTRA):9}' + _cells([*row, sum(row) / len(row)]))
    means = [sum(errors[name][s] for name in CORRUPTIONS) / len(CORRUPTIONS) for s in range(SEVERITIES)]
    lines.append(f'{"mean of the fifteen":29}' + _cells([*means, mean_corruption_error(errors)]))
    return '\n'.join([*lines, f'{"images as they are":64}{clean:7.2f}'])


def _cells(values: Iterable[float]) -> str:
    return ''.join(f'{value:7.2f}' for value in values)


def plot_robustness(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Error over severity, a panel a family, and over the radius of the attack: whichever was measured."""
    errors: Any = record.get('corruptions')
    attack = record.get('attack')
    families = list(dict.fromkeys(FAMILY.get(name, _EXTRA) for name in errors['errors'])) if errors else []
    count = len(families) + bool(attack)
    figure, axes = new_figure(1, count, (3.4 * count + 0.6, 4.4), sharey=True)
    for panel, family in zip(axes[0], families, strict=False):
        for name, row in errors['errors'].items():
            if FAMILY.get(name, _EXTRA) == family:
                panel.plot(range(SEVERITIES + 1), [errors['clean'], *row], marker='.', label=name.replace('_', ' '))
        panel.set(title=family, xlabel='severity', xticks=range(SEVERITIES + 1))
        panel.legend(fontsize=8, loc='upper left')
    if attack:
        panel = axes[0, -1]
        panel.plot(attack['radii'], [100 - top1 for top1 in attack['top1s']], marker='o', color='black')
        panel.set(title=attack_name(attack), xlabel='radius, 1/255')
    for panel in axes[0]:
        panel.set_ylim(0, 102)
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel('error, %')
    figure.suptitle(title, fontsize=11)
    write_picture(figure, path)


def attack_name(attack: Mapping[str, Any]) -> str:
    return f'PGD, {attack["steps"]} steps' if attack['name'] == 'pgd' else 'FGSM'


def attack_table(attack: Mapping[str, Any]) -> str:
    rows = [f'{radius:13g}{top1:8.2f}' for radius, top1 in zip(attack['radii'], attack['top1s'], strict=True)]
    return '\n'.join([f'Top-1 in % under attack ({attack_name(attack)}, maximum norm)', 'radius, 1/255   top-1', *rows])
