"""Figures where an image may have several labels: each class is a yes or no, at a probability of 0.5."""
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError
from ..weights.readout import Readout
from .calibration import calibration_error
from .ranking import Ranking, defined, mean, shares

_RESAMPLED = ('accuracy', 'f1', 'micro_f1', 'auroc', 'average_precision')     # by a bootstrap


@dataclass(frozen=True)
class LabelFigures:
    """Figures of a class in percent; `auroc` and `average_precision` from 0 to 1. None if undefined."""
    name: str
    images: int                                 # that have it
    predicted: int
    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    average_precision: float | None


@dataclass(frozen=True)
class MultiLabelFigures:
    """Figures in percent; `auroc`, `average_precision` and calibration errors from 0 to 1. None if undefined.

    Means over classes (`f1`, `auroc`, `average_precision`) leave out those without images; `f1` counts one of these
    that is predicted as 0. `accuracy` and `auroc` are the ACC and AUC of MedMNIST.
    """
    images: int
    accuracy: float                             # share of right answers, over images and classes
    loss: float                                 # binary cross-entropy
    f1: float
    micro_f1: float                             # of all classes together
    auroc: float | None
    average_precision: float | None
    calibration_error: float                    # of all answers
    classes: list[LabelFigures] = field(repr=False)
    intervals: dict[str, tuple[float, float]]   # 95 % by bootstrap, where asked for
    temperature: float | None = None            # of the weights, and the calibration error of the scaled outputs
    calibrated_error: float | None = None

    @property
    def headline(self) -> str:
        return f'ACC {self.accuracy:.2f} %' + (f', AUROC {self.auroc:.4f}' if self.auroc is not None else '')

    def scalars(self) -> dict[str, float]:
        """Return the scalar figures that are defined."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), (int, float))}

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values, without undefined ones."""
        rows = [{'class': row.name, **{key: value for key, value in asdict(row).items() if key != 'name'}}
                for row in self.classes]
        return {**{key: value for key, value in asdict(self).items() if value is not None and value != {}},
                'classes': rows}

    def to_pandas(self) -> Any:
        """Return the figures by class as a pandas DataFrame, one row per class."""
        return as_pandas(self.classes, LabelFigures)


def as_pandas(rows: Sequence[Any], kind: Any) -> Any:
    try:
        import pandas
    except ImportError as e:
        raise ZooError('to_pandas needs pandas, which is not installed: pip install pandas.') from e
    columns = [field.name for field in fields(kind)]    # also without rows
    return pandas.DataFrame([asdict(row) for row in rows], columns=columns).set_index('name')


def multi_label_figures(logits: Tensor, labels: Tensor, names: Sequence[str], bootstrap: int, seed: int,
                        readout: Readout) -> MultiLabelFigures:
    """Return all figures of logits and labels [N, C], which have been checked."""
    logits, wanted = logits.double(), labels.double()
    sample = _Answers(logits.sigmoid().numpy(), labels.numpy() > 0)
    every = np.ones(len(labels))
    aurocs, precisions = sample.aurocs(every), sample.average_precisions(every)
    truth, predicted = sample.positive, sample.answers
    hits, have, said = (x.sum(0) for x in (truth & predicted, truth, predicted))
    columns = [accuracy, precision, recall, f1] = [
        100 * part for part in ((truth == predicted).mean(0), shares(hits, said), shares(hits, have),
                                shares(2 * hits, have + said))]
    rows = [LabelFigures(name, int(have[i]), int(said[i]), float(columns[0][i]),
                         *(defined(column[i]) for column in (precision, recall, f1, aurocs, precisions)))
            for i, name in enumerate(names)]
    return MultiLabelFigures(
        images=len(labels), accuracy=float(accuracy.mean()),
        loss=F.binary_cross_entropy_with_logits(logits, wanted).item(), f1=sample.f1(every),
        micro_f1=sample.micro_f1(every), auroc=defined(mean(aurocs)), average_precision=defined(mean(precisions)),
        calibration_error=calibration_error(sample.probabilities, labels.numpy()), classes=rows,
        intervals=sample.intervals(_RESAMPLED, bootstrap, seed), temperature=readout.temperature,
        calibrated_error=calibration_error(readout(logits).numpy(), labels.numpy()) if readout.temperature else None)


class _Answers(Ranking):
    """A yes or no for each image and class."""

    def __init__(self, probabilities: np.ndarray, positive: np.ndarray) -> None:
        super().__init__(probabilities, positive, probabilities > 0.5)

    def accuracy(self, weights: np.ndarray) -> float:
        return 100 * float(weights @ (self.answers == self.positive).mean(1) / weights.sum())

    def f1(self, weights: np.ndarray) -> float:
        hits, both = self._counts(weights)
        return defined(self.macro_f1(hits, both)) or 0.

    def micro_f1(self, weights: np.ndarray) -> float:
        hits, both = self._counts(weights)
        return 200 * float(hits.sum() / max(both.sum(), 1))

    def _counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each class the true positives, and the sum of predicted and actual positives."""
        return weights @ (self.answers & self.positive), weights @ self.answers + weights @ self.positive
