"""Measure calibration (are images of 80 % probability right in 80 % of cases?), and fit a temperature."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError
from ..runtime.files import new_figure, write_picture
from ..weights.readout import PLAIN, Readout

_BINS = 15
_LOWEST, _HIGHEST, _HALVINGS = 0.01, 100., 60       # of the temperature


def check_logits(logits: Any, classes: int | None = None) -> None:
    """Raise ZooError unless a model's outputs are of images and classes."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or classes not in (None, logits.shape[1]):
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ZooError(f'The outputs of the model are {shape}, expected [images, {classes or "classes"}]: give it a '
                       f'pooling, and no other outputs.')


def check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise ZooError('Some outputs are not finite: try the precision fp32, or other weights.')


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature that minimizes the cross-entropy of logits [N, C] and labels [N], or [N, C] of 0 and 1.

    The labels are smoothed by a single image's worth, or the temperature would be 0 where all images are right.
    """
    check_finite(logits)
    z, labels = logits.detach().cpu().double(), labels.cpu()
    readout, smoothing = Readout(multi_label=labels.ndim == 2), 1 / (len(z) + 1)
    hot = labels.double() if readout.multi_label else F.one_hot(labels, z.shape[1])
    wanted = (hot * (1 - smoothing) + smoothing / (2 if readout.multi_label else z.shape[1])) * z
    low, high = np.log((_LOWEST, _HIGHEST))
    for _ in range(_HALVINGS):      # the loss is convex in 1 / temperature
        middle = (low + high) / 2
        too_cold = (readout(z / np.exp(middle)) * z).mean() > wanted.mean()
        low, high = (middle, high) if too_cold else (low, middle)
    return float(np.exp((low + high) / 2))


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each bin of the largest probability: number of images, mean probability, accuracy.

    With labels [N, C] of 0 and 1, all probabilities count, and the share of those whose class is there.
    """
    if labels.ndim == 2:
        largest, correct = probabilities.ravel(), labels.ravel() > 0
    else:
        largest, correct = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((largest * _BINS).astype(int), _BINS - 1)
    counts, sure, right = (np.bincount(place, x, minlength=_BINS) for x in (
        np.ones(len(largest)), largest, correct))
    return counts, sure / counts.clip(min=1), right / counts.clip(min=1)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the expected calibration error, from bins of equal width."""
    counts, sure, right = reliability(probabilities, labels)
    return float(np.abs(sure - right) @ counts / counts.sum())


def plot_reliability(logits: Tensor, labels: Tensor, title: str, path: Path, readout: Readout = PLAIN) -> None:
    """Plot accuracy over the probability of the predicted class, and how many images have it; also before scaling."""
    figure, axes = new_figure(2, 1, (5, 6), title, sharex=True, height_ratios=(3, 1))
    upper, lower = axes[:, 0]
    left = np.arange(_BINS) / _BINS
    upper.plot((0, 1), (0, 1), color='0.6', linestyle='--', label='perfectly calibrated')
    several = labels.ndim == 2
    before = replace(readout, temperature=None)
    for each in dict.fromkeys((before, readout)):
        probabilities = each(logits.double()).numpy()
        counts, sure, right = reliability(probabilities, labels.numpy())
        used, last = counts > 0, each == readout
        name = '' if readout == before else ', scaled' if last else ', not scaled'
        error = calibration_error(probabilities, labels.numpy())
        if last:
            upper.bar(left[used], right[used], 1 / _BINS, align='edge', edgecolor='white', alpha=0.8)
        upper.plot(sure[used], right[used], 'o-' if last else 'x:', color='C1' if last else '0.4',
                   label=f'calibration error {error:.3f}{name}')
    upper.set(ylabel='share of images that have the class' if several else 'accuracy', xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc='upper left')
    lower.bar(left, 100 * counts / counts.sum(), 1 / _BINS, align='edge', edgecolor='white', color='0.5')
    lower.set(xlabel=f'probability of {"a" if several else "the predicted"} class',
              ylabel=f'% of {"answers" if several else "images"}')
    write_picture(figure, path)
