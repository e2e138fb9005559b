"""Robustness: error on corrupted images, published or made here; accuracy under maximum-norm attacks, pixels 0 to 1."""
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.files import map_npy
from ..data.images import ArrayImages
from ..data.splits import Split, derived
from ..errors import ZooError
from ..runtime.files import new_figure, write_picture
from ..runtime.text import track
from .accuracy import evaluate
from .bench import Bench
from .corruptions import CORRUPTIONS, FAMILY, SEVERITIES, corrupt

_OURS = "corruptions by this package, not the official set"
_EXTRA = 'extra'        # family of the corruptions that the official sets have beyond the fifteen
_SEVERITIES = range(1, SEVERITIES + 1)


def corruption_figures(bench: Bench, folder: Path | None = None) -> dict[str, Any]:
    """Return 'mce', 'clean' (errors in %), 'errors' by corruption and severity; `folder`: of a published set."""
    bench.check_classes()
    names, source, images = CORRUPTIONS, _OURS, bench.batches(normalized=False)
    published = open_published(folder, bench.num_classes) if folder else None
    if published:
        names, source = published.files, str(published.folder)

    def error(batches: Any) -> float:
        normalized = ((bench.normalize(images), labels) for images, labels in batches)
        return 100 - evaluate(bench.loaded.model, normalized, bench.world, bench.dtype)['top1']
    clean = error(images)
    errors: dict[str, list[float]] = {name: [] for name in names}
    pairs = [(name, severity) for name in names for severity in _SEVERITIES]
    for name, severity in track(pairs, 'corruptions', 'set', quiet=not bench.world.first):
        errors[name].append(error(
            bench.batches(published.split(name, severity), normalized=False) if published
            else corrupted(images, name, severity)))
    return {'mce': mean_corruption_error(errors), 'clean': clean, 'errors': errors, 'source': source}


def corrupted(batches: Iterable[tuple[Tensor, Tensor]], name: str, severity: int,
              seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Corrupt uint8 batches; the same images, batch size, seed and device give the same."""
    for number, (images, labels) in enumerate(batches):
        seeds = derived(seed, zlib.crc32(name.encode()), number)
        yield corrupt(images, name, severity, torch.Generator(images.device).manual_seed(seeds)), labels


@dataclass(frozen=True)
class Published:
    """A folder laid out as CIFAR-10-C: `labels.npy`, and a file for each corruption, severity after severity."""
    folder: Path
    labels: Tensor
    files: tuple[str, ...]

    def split(self, name: str, severity: int) -> Split:
        count = len(self.labels) // SEVERITIES
        part = slice((severity - 1) * count, severity * count)
        pixels = torch.from_numpy(np.array(map_npy(self.folder / f'{name}.npy')[part]))
        return Split(ArrayImages(pixels, f'{name} {severity}'), self.labels[part])


def open_published(folder: Path, num_classes: int) -> Published:
    """Open and check a published set: the fifteen corruptions and any others. Pixels are read when needed."""
    if not (folder / 'labels.npy').is_file():
        raise ZooError(f'There is no {folder / "labels.npy"}: give the folder of CIFAR-10-C or CIFAR-100-C, unpacked, '
                       f'or --corruptions alone for {_OURS}.')
    files = sorted(path.stem for path in folder.glob('*.npy') if path.stem != 'labels')
    missing = [name for name in CORRUPTIONS if name not in files]
    if missing:
        raise ZooError(f'{folder} lacks {", ".join(f"{name}.npy" for name in missing)}: unpack the whole set.')
    labels = np.asarray(map_npy(folder / 'labels.npy'))
    if labels.ndim != 1 or labels.dtype.kind not in 'iu' or not len(labels) or len(labels) % SEVERITIES:
        raise ZooError(f'{folder / "labels.npy"} is {labels.dtype} {list(labels.shape)}: expected a whole number for '
                       f'each image, the same for all five severities.')
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ZooError(f'{folder / "labels.npy"} has classes {labels.min()} to {labels.max()}, but the model has '
                       f'{num_classes}: give the set with its classes.')
    for name in files:
        pixels = map_npy(folder / f'{name}.npy')
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != len(labels):
            raise ZooError(f'{folder / name}.npy is {pixels.dtype} {list(pixels.shape)}, expected uint8 '
                           f'[{len(labels)}, H, W, 3]: download it again.')
    names = (*CORRUPTIONS, *(name for name in files if name not in CORRUPTIONS))
    return Published(folder, torch.from_numpy(labels.astype(np.int64)), names)


@dataclass(frozen=True)
class Attack:
    """FGSM (arXiv 1412.6572), one step of `radius` (1/255); or PGD (arXiv 1706.06083) from a random start."""
    # PGD's steps are a quarter of the radius each: more of them can only find more adversarial examples
    name: str
    radius: float
    steps: int = 20

    def __post_init__(self) -> None:
        if self.name not in ('fgsm', 'pgd'):
            raise ZooError(f'There is no attack {self.name!r}: expected fgsm or pgd.')
        if not 0 <= self.radius < math.inf:
            raise ZooError(f'radius is {self.radius:g}, expected 0 or more grey levels; 8 is usual.')
        if not 1 <= self.steps <= 10_000:
            raise ZooError(f'steps is {self.steps}, expected 1 to 10,000.')


def _withstands(model: nn.Module, images: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor], attack: Attack,
                generator: torch.Generator) -> int:
    """Return how many images (uint8 [B, C, H, W]) are correctly classified, and so is every point of the attack."""
    clean, radius = images.to(torch.float32) / 255, attack.radius / 255
    left = torch.arange(len(images), device=images.device)
    left = left[_correct(model, clean, labels, prepare)]
    points, steps, length = clean, 1, radius
    if attack.name == 'pgd':
        noise = 2 * torch.rand(clean.shape, generator=generator, device=clean.device) - 1
        points, steps, length = (clean + radius * noise).clamp_(0, 1), attack.steps, radius / 4
    points = points[left]
    for _ in range(steps):
        if not len(left):
            break
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = model(prepare(255 * points)).float()
            gradient, = torch.autograd.grad(F.cross_entropy(logits, labels[left], reduction='sum'), points)
        correct = logits.argmax(1) == labels[left]
        points, left = (points + length * gradient.sign())[correct], left[correct]
        points = points.clamp(clean[left] - radius, clean[left] + radius).clamp_(0, 1)
    return int(_correct(model, points, labels[left], prepare).sum()) if len(left) else 0


@torch.no_grad()
def _correct(model: nn.Module, points: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    return model(prepare(255 * points)).argmax(1) == labels


def count_robust(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Callable[[Tensor], Tensor],
                 attacks: Sequence[Attack], seed: int = 0) -> list[int]:
    """Return how many images withstand each attack, and last the number of images; in eval mode and float32."""
    # batches are uint8, `prepare` normalises images from 0 to 255
    training = model.training
    model.eval()
    counts = [0] * (len(attacks) + 1)
    for number, (images, labels) in enumerate(batches):
        counts[-1] += len(labels)
        for i, attack in enumerate(attacks):
            generator = torch.Generator(images.device).manual_seed(derived(seed, number))  # the same start for all
            counts[i] += _withstands(model, images, labels, prepare, attack, generator)
    model.train(training)
    return counts


def attack_figures(bench: Bench, attacks: Sequence[Attack]) -> dict[str, Any]:
    """Return 'name' and 'steps' of attacks that differ in radius, their 'radii' (1/255), and 'top1s' for each."""
    bench.check_classes()
    batches = track(bench.batches(normalized=False), attacks[0].name, 'batch', quiet=not bench.world.first)
    counts = count_robust(bench.loaded.model, batches, bench.normalize, attacks)
    *robust, count = bench.world.sum(torch.tensor(counts, device=bench.world.device)).tolist()
    return {'name': attacks[0].name, 'steps': attacks[0].steps if attacks[0].name == 'pgd' else 1,
            'radii': [attack.radius for attack in attacks], 'top1s': [100 * n / count for n in robust]}


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over the fifteen corruptions and five severities in percent, not divided by another model's."""
    return sum(sum(errors[name]) for name in CORRUPTIONS) / (len(CORRUPTIONS) * SEVERITIES)


def errors_table(figures: Mapping[str, Any]) -> str:
    """Return `corruption_figures` as a table with a line for each corruption, the means last."""
    errors = figures['errors']
    head = ''.join(f'{severity:>7}' for severity in _SEVERITIES)
    lines = [f'Error in % by severity ({figures["source"]})', f'{"":29}{head}   mean']
    means = [sum(errors[name][s] for name in CORRUPTIONS) / len(CORRUPTIONS) for s in range(SEVERITIES)]
    rows = [(f'{name:20}{FAMILY.get(name, _EXTRA):9}', [*row, sum(row) / len(row)]) for name, row in errors.items()]
    for title, row in [*rows, ('mean of the fifteen', [*means, figures['mce']])]:
        lines.append(f'{title:29}' + ''.join(f'{value:7.2f}' for value in row))
    return '\n'.join([*lines, f'{"clean images":64}{figures["clean"]:7.2f}'])


def plot_robustness(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plot error over severity, a panel for each family, and over the radius of the attack."""
    errors: Any = record.get('corruptions')
    attack = record.get('attack')
    families = list(dict.fromkeys(FAMILY.get(name, _EXTRA) for name in errors['errors'])) if errors else []
    count = len(families) + bool(attack)
    figure, axes = new_figure(1, count, (3.4 * count + 0.6, 4.4), title, sharey=True)
    for panel, family in zip(axes[0], families, strict=False):
        for name, row in errors['errors'].items():
            if FAMILY.get(name, _EXTRA) == family:
                panel.plot(range(SEVERITIES + 1), [errors['clean'], *row], marker='.', label=name.replace('_', ' '))
        panel.set(title=family, xlabel='severity', xticks=range(SEVERITIES + 1))
        panel.legend(fontsize=8, loc='upper left')
    if attack:
        panel = axes[0, -1]
        panel.plot(attack['radii'], [100 - top1 for top1 in attack['top1s']], marker='o', color='black')
        panel.set(title=_attack_name(attack), xlabel='radius, 1/255')
    for panel in axes[0]:
        panel.set_ylim(0, 102)
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel('error, %')
    write_picture(figure, path)


def _attack_name(attack: Mapping[str, Any]) -> str:
    return f'PGD, {attack["steps"]} steps' if attack['name'] == 'pgd' else 'FGSM'


def attack_table(attack: Mapping[str, Any]) -> str:
    """Return `attack_figures` as a table."""
    rows = [f'{radius:13g}{top1:8.2f}' for radius, top1 in zip(attack['radii'], attack['top1s'], strict=True)]
    title = f'Top-1 in % under attack ({_attack_name(attack)}, maximum norm)'
    return '\n'.join([title, 'radius, 1/255   top-1', *rows])
