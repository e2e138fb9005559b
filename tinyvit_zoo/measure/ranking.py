"""AUROC and average precision of each class from its ranking of the images, and bootstrap intervals."""
import math
from collections.abc import Sequence

import numpy as np

from ..runtime.text import track


class Ranking:
    """Probabilities and membership [N, C]; each figure is of images counted `weights` times, as a bootstrap needs."""

    def __init__(self, probabilities: np.ndarray, positive: np.ndarray, answers: np.ndarray) -> None:
        self.probabilities, self.positive, self.answers = probabilities, positive, answers
        self.without = answers.any(0) & ~positive.any(0)
        # from the most probable image of each class to the least
        self.order = [np.argsort(-column, kind='stable') for column in probabilities.T]
        # where a run of equal probabilities ends: its images share one threshold
        self.ends = [np.flatnonzero(np.append(np.diff(column[order]) != 0, True))
                     for column, order in zip(probabilities.T, self.order, strict=True)]

    def auroc(self, weights: np.ndarray) -> float:
        return mean(self.aurocs(weights))

    def average_precision(self, weights: np.ndarray) -> float:
        return mean(self.average_precisions(weights))

    def macro_f1(self, hits: np.ndarray, either: np.ndarray) -> float:
        """Return the mean F1 in percent; a class without images that is predicted counts as 0, in all resamples."""
        return 100 * mean(np.where(self.without, 0., shares(2 * hits, either)))

    def _thresholds(self, weights: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return at each threshold, the highest first, how many images of class `i` and of the others reach it."""
        order = self.order[i]
        positive = weights[order] * self.positive[order, i]
        return positive.cumsum()[self.ends[i]], (weights[order] - positive).cumsum()[self.ends[i]]

    def aurocs(self, weights: np.ndarray) -> np.ndarray:
        """Return the area under the curve of each class against the rest; NaN without images on both sides."""
        areas = []
        for i in range(len(self.order)):
            hits, alarms = (np.append(0, x) for x in self._thresholds(weights, i))
            area = (np.diff(alarms) * (hits[1:] + hits[:-1])).sum() / 2
            areas.append(area / (hits[-1] * alarms[-1]) if hits[-1] * alarms[-1] else math.nan)
        return np.array(areas)

    def average_precisions(self, weights: np.ndarray) -> np.ndarray:
        areas = []
        for i in range(len(self.order)):
            hits, alarms = self._thresholds(weights, i)
            steps = np.diff(np.append(0, hits))
            areas.append((steps * shares(hits, hits + alarms, 0.)).sum() / hits[-1] if hits[-1] else math.nan)
        return np.array(areas)

    def intervals(self, names: Sequence[str], bootstrap: int, seed: int) -> dict[str, tuple[float, float]]:
        """Return 95 % intervals of the named figures from `bootstrap` resamples; none if that is 0."""
        if not bootstrap:
            return {}
        draw, count, values = np.random.default_rng(seed), len(self.probabilities), []
        for _ in track(range(bootstrap), 'resampling', 'resample', lines=False):
            weights = np.bincount(draw.integers(count, size=count), minlength=count).astype(float)
            values.append([getattr(self, name)(weights) for name in names])
        known = {key: column[~np.isnan(column)] for key, column in zip(names, np.array(values).T, strict=True)}
        ends = {key: np.percentile(column, (2.5, 97.5)) for key, column in known.items() if len(column)}
        return {key: (float(low), float(high)) for key, (low, high) in ends.items()}


def shares(part: np.ndarray, whole: np.ndarray, none: float = math.nan) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), none), where=whole > 0)


def mean(values: np.ndarray) -> float:
    """Return the mean of those that are defined; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
