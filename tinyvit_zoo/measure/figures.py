"""Figures of a classifier from its logits: accuracy, F1, AUROC, calibration, by class, with bootstrap intervals."""
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..data.splits import Split
from ..errors import ZooError
from ..runtime.files import new_figure, write_picture
from ..weights.readout import PLAIN, Readout
from .calibration import calibration_error, check_finite
from .multilabel import MultiLabelFigures, as_pandas, multi_label_figures
from .ranking import Ranking, defined, mean, shares

FORMATS = {     # title and format
    'accuracy': ('ACC', '.2f'), 'top1': ('top-1', '.2f'), 'top5': ('top-5', '.2f'), 'loss': ('loss', '.4f'),
    'balanced_accuracy': ('balanced', '.2f'), 'f1': ('F1', '.2f'), 'micro_f1': ('micro F1', '.2f'),
    'auroc': ('AUROC', '.4f'), 'average_precision': ('AP', '.4f'), 'calibration_error': ('ECE', '.4f'),
    'calibrated_error': ('ECE at T', '.4f')}
_NUMBERS = 20       # classes up to which the cells of a confusion matrix have numbers
_SMALLEST = 3.      # points, of a legible class name
_MISTAKES = 24      # images on a sheet of them
_RESAMPLED = ('top1', 'balanced_accuracy', 'f1', 'auroc', 'average_precision')     # by a bootstrap


@dataclass(frozen=True)
class ClassFigures:
    """Figures of a class in percent; `auroc` and `average_precision` from 0 to 1. None if undefined."""
    name: str
    images: int
    correct: int
    top1: float | None                          # the recall
    interval: tuple[float, float] | None        # Wilson's 95 %
    precision: float | None
    f1: float | None
    auroc: float | None                         # against all others
    average_precision: float | None
    most_taken_for: str | None
    times: int


@dataclass(frozen=True)
class Figures:
    """Figures in percent; `auroc`, `average_precision` and `calibration_error` from 0 to 1. None if undefined.

    Means over classes (`balanced_accuracy`, `f1`, `auroc`, `average_precision`) leave out those without images; `f1`
    counts one of these that is predicted as 0. All but `calibrated_error` are of the outputs as they are, without the
    temperature of the weights, by which the loss, AUROC and AP of the probabilities of `predict` differ a little.
    """
    images: int
    top1: float
    interval: tuple[float, float]               # of the top-1: Wilson's 95 %
    top5: float | None                          # from 6 classes on
    loss: float
    balanced_accuracy: float
    f1: float
    auroc: float | None                         # one against rest
    average_precision: float | None
    calibration_error: float
    classes: list[ClassFigures] = field(repr=False)
    confusion: list[list[int]] = field(repr=False)      # images by class (row) and predicted class (column)
    intervals: dict[str, tuple[float, float]]   # 95 % by bootstrap, where asked for
    temperature: float | None = None            # of the weights, and the calibration error of the scaled outputs
    calibrated_error: float | None = None
    kappa: float | None = None                  # Cohen's with quadratic weights, for classes in an order

    @property
    def headline(self) -> str:
        return f'{self.top1:.2f} %'

    def scalars(self) -> dict[str, float]:
        """Return the scalar figures that are defined."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), (int, float))}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, without undefined ones."""
        rows = [{'class': row.name, **{key: value for key, value in asdict(row).items() if key != 'name'}}
                for row in self.classes]
        whole = {key: value for key, value in asdict(self).items() if value is not None and value != {}}
        return {**whole, 'classes': rows}

    def to_pandas(self) -> Any:
        """Return the figures by class as a pandas DataFrame, one row per class."""
        return as_pandas(self.classes, ClassFigures)


def figures_of(logits: Tensor, labels: Tensor, names: Sequence[str], bootstrap: int = 0, seed: int = 0,
               readout: Readout = PLAIN) -> Figures | MultiLabelFigures:
    """Return all figures of logits [N, C] and labels [N], or [N, C] of 0 and 1 where images have several.

    `bootstrap`: how many resamples the intervals are from. `readout`: that of the weights, for `calibrated_error`; all
    other figures are of the logits as they are.
    """
    logits, labels = logits.detach().cpu().float(), labels.cpu()
    if logits.shape[1] != len(names) or len(logits) != len(labels) or not len(labels):
        raise ZooError(f'There are logits {list(logits.shape)}, {len(labels)} labels and {len(names)} classes: '
                       f'expected one label for each row and one column for each class.')
    check_finite(logits)
    if labels.ndim == 2:
        return multi_label_figures(logits, labels, names, bootstrap, seed, readout)
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
        raise ZooError(f'There are labels from {int(labels.min())} to {int(labels.max())}: expected 0 to '
                       f'{len(names) - 1}.')
    sample = _Sample(logits.double().softmax(1).numpy(), labels.numpy())
    every = np.ones(len(labels))
    aurocs, precisions = sample.aurocs(every), sample.average_precisions(every)
    confusion = sample.confusion(every).astype(int)
    correct = int(confusion.diagonal().sum())
    ranked = logits.topk(min(5, len(names))).indices.eq(labels[:, None]).any(1)
    return Figures(
        images=len(labels), top1=100 * correct / len(labels), interval=wilson(correct, len(labels)),
        top5=100 * ranked.double().mean().item() if len(names) > 5 else None,
        loss=F.cross_entropy(logits.double(), labels).item(),
        balanced_accuracy=sample.balanced_accuracy(every), f1=sample.f1(every),
        auroc=defined(mean(aurocs)), average_precision=defined(mean(precisions)),
        calibration_error=calibration_error(sample.probabilities, sample.labels),
        classes=_by_class(confusion, names, aurocs, precisions),
        confusion=confusion.tolist(), intervals=sample.intervals(_RESAMPLED, bootstrap, seed),
        temperature=readout.temperature,
        calibrated_error=calibration_error(readout(logits.double()).numpy(), sample.labels)
        if readout.temperature else None,
        kappa=_kappa(confusion))


class _Sample(Ranking):
    """Probabilities [N, C] and labels [N]; each figure is of images counted `weights` times, as a bootstrap needs."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        self.labels, self.predicted = labels, probabilities.argmax(1)
        super().__init__(probabilities, *(x[:, None] == np.arange(probabilities.shape[1]) for x in (
            labels, self.predicted)))

    def confusion(self, weights: np.ndarray) -> np.ndarray:
        count = self.probabilities.shape[1]
        cells = np.bincount(self.labels * count + self.predicted, weights, minlength=count ** 2)
        return cells.reshape(count, count)

    def top1(self, weights: np.ndarray) -> float:
        return 100 * float(weights[self.predicted == self.labels].sum() / weights.sum())

    def balanced_accuracy(self, weights: np.ndarray) -> float:
        confusion = self.confusion(weights)
        return 100 * mean(shares(confusion.diagonal(), confusion.sum(1)))

    def f1(self, weights: np.ndarray) -> float:
        confusion = self.confusion(weights)
        return self.macro_f1(confusion.diagonal(), confusion.sum(0) + confusion.sum(1))


def _by_class(confusion: np.ndarray, names: Sequence[str], aurocs: np.ndarray, precisions: np.ndarray,
              ) -> list[ClassFigures]:
    rows = []
    for i, (name, row) in enumerate(zip(names, confusion, strict=True)):
        images, correct, predicted = int(row.sum()), int(row[i]), int(confusion[:, i].sum())
        others = np.delete(row, i)
        wrong = int(others.argmax()) if len(others) else 0
        times = int(others[wrong]) if len(others) else 0
        rows.append(ClassFigures(
            name=name, images=images, correct=correct, top1=100 * correct / images if images else None,
            interval=wilson(correct, images) if images else None,
            precision=100 * correct / predicted if predicted else None,
            f1=200 * correct / (images + predicted) if images + predicted else None,
            auroc=defined(aurocs[i]), average_precision=defined(precisions[i]),
            most_taken_for=names[wrong + (wrong >= i)] if times else None, times=times))
    return rows


def _kappa(confusion: np.ndarray) -> float | None:
    """Return Cohen's kappa with quadratic weights: 1 if all are right, 0 as by chance; None if it is not defined."""
    places = np.arange(len(confusion))
    distances = (places[:, None] - places) ** 2
    chance = (distances * np.outer(confusion.sum(1), confusion.sum(0))).sum() / confusion.sum()
    return 1 - float((distances * confusion).sum() / chance) if chance else None


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, in percent."""
    z = 1.959963984540054
    share, square = correct / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return 100 * max(0., middle - half), 100 * min(1., middle + half)


# -- pictures ----------------------------------------------------------------------------------------------------------
def plot_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], title: str, path: Path) -> None:
    """Plot true classes (rows) against predicted ones, each row in percent of its images."""
    # colours by the square root of the share, else mistakes would be too faint beside the diagonal
    from matplotlib.colors import PowerNorm
    counts = np.array(confusion, dtype=float)
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    size = min(max(4.5, 0.62 * len(names)), max(16, 0.12 * len(names)), 24)     # inches
    font = min(10., 60 * size / len(names) * 0.75)      # points, so that names do not overlap
    ticks = range(len(names)) if font >= _SMALLEST else ()
    labels = [_short(name) for name in names]
    labels = labels if len({*labels}) == len({*names}) else [_short(name, 60) for name in names]
    beside = max(len(labels[i]) for i in ticks) * font / 110 if ticks else 0.   # inches that names take
    figure, ((axes,),) = new_figure(1, 1, (size + beside + 1.8, size + beside + 0.8), title)
    image = axes.imshow(shares, cmap='Blues', norm=PowerNorm(0.5, 0, 100), interpolation='nearest')
    for set_ticks, rotation in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
        set_ticks(ticks, [labels[i] for i in ticks], rotation=rotation, fontsize=font)
        set_ticks([i + 0.5 for i in ticks[:-1]], minor=True)
    axes.tick_params(which='both', length=0)
    axes.set(xlabel='predicted class', ylabel='true class')
    axes.grid(which='minor', color='0.88', linewidth=0.4)
    if len(names) <= _NUMBERS:
        for row, column in zip(*counts.nonzero(), strict=True):
            share = shares[row, column]
            axes.text(column, row, f'{share:.1f}' if share < 99.95 else '100', ha='center', va='center', fontsize=8,
                      color='white' if share > 40 else 'black')
    figure.colorbar(image, ax=axes, label="% of the row's images", shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100])
    write_picture(figure, path)


def plot_mistakes(logits: Tensor, labels: Tensor, split: Split, names: Sequence[str], title: str, path: Path) -> None:
    """Draw the wrongly classified images with the largest loss: their class, the predicted one, and their name."""
    losses = F.cross_entropy(logits.float(), labels, reduction='none').masked_fill(logits.argmax(1) == labels, -1)
    worst = [i for i in losses.argsort(descending=True)[:_MISTAKES].tolist() if losses[i] >= 0]
    columns = min(6, max(1, len(worst)))
    rows = max(1, -(-len(worst) // columns))
    figure, axes = new_figure(rows, columns, (max(2.2 * columns, 4.), 0.6 + 2.5 * rows),
                              title if worst else f'{title}: no mistake')
    for panel in axes.flat:
        panel.axis('off')
    for i, panel in zip(worst, axes.flat, strict=False):
        probabilities = logits[i].float().softmax(0)
        guess = int(probabilities.argmax())
        panel.imshow(split.read(i), cmap='gray', interpolation='nearest')
        panel.set_title(f'{_short(names[int(labels[i])])}\ntaken for {_short(names[guess])} '
                        f'({100 * probabilities[guess]:.0f} %)', fontsize=8)
        panel.text(0.5, -0.03, _short(split.name(i), 40, end=True), transform=panel.transAxes, ha='center', va='top',
                   fontsize=6)
    write_picture(figure, path)


def _short(name: str, most: int = 20, end: bool = False) -> str:
    """Leave out the middle of a long name, or (`end`) all but its end."""
    if len(name) <= most:
        return name
    first = 0 if end else most // 2
    return f'{name[:first]}\u2026{name[first + 1 - most:]}'
