"""Figures of logits against scikit-learn's, their intervals, and the pictures."""
from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tinyvit_zoo import ZooError
from tinyvit_zoo.data.images import ArrayImages
from tinyvit_zoo.data.splits import Split
from tinyvit_zoo.measure import calibration, figures as under_test
from tinyvit_zoo.measure.calibration import fit_temperature, plot_reliability, reliability
from tinyvit_zoo.measure.figures import (
    figures_of,
    plot_confusion,
    plot_mistakes,
    wilson,
)
from tinyvit_zoo.runtime.files import write_picture
from tinyvit_zoo.weights.readout import Readout


def made_up(images: int, classes: int, seed: int, rounded: bool = False) -> tuple[Tensor, Tensor]:
    """Logits that are right more often than not; `rounded`: with many equal ones."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=draw)
    logits = torch.randn(images, classes, generator=draw) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return (logits.round() if rounded else logits), labels


@pytest.mark.parametrize('images, classes, rounded', [
    (300, 2, False), (300, 5, True), (500, 10, False), (40, 30, False)])
def test_against_scikit_learn(images: int, classes: int, rounded: bool) -> None:
    """Of 40 images and 30 classes some classes have no image."""
    metrics = pytest.importorskip('sklearn.metrics')
    logits, labels = made_up(images, classes, classes, rounded)
    found = figures_of(logits, labels, [str(i) for i in range(classes)])
    p, y, guess = logits.double().softmax(1).numpy(), labels.numpy(), logits.argmax(1).numpy()
    present = sorted(set(y.tolist()))
    assert found.top1 == pytest.approx(100 * metrics.accuracy_score(y, guess))
    assert found.balanced_accuracy == pytest.approx(100 * np.mean([(guess[y == i] == i).mean() for i in present]))
    seen = sorted({*present, *guess.tolist()})
    assert found.f1 == pytest.approx(100 * metrics.f1_score(y, guess, average='macro', labels=seen))
    assert found.loss == pytest.approx(metrics.log_loss(y, p, labels=range(classes)), rel=1e-5)
    assert found.kappa == pytest.approx(metrics.cohen_kappa_score(y, guess, weights='quadratic', labels=range(classes)))
    aurocs = {i: metrics.roc_auc_score(y == i, p[:, i]) for i in present}
    precisions = {i: metrics.average_precision_score(y == i, p[:, i]) for i in present}
    assert found.auroc == pytest.approx(np.mean(list(aurocs.values())))
    assert found.average_precision == pytest.approx(np.mean(list(precisions.values())))
    for i, row in enumerate(found.classes):
        assert (row.auroc, row.average_precision) == (pytest.approx(aurocs.get(i)), pytest.approx(precisions.get(i)))
        assert (row.top1 is None) == (i not in present) == (row.interval is None)
    if classes == 2:
        assert found.auroc == pytest.approx(metrics.roc_auc_score(y, p[:, 1]))  # as MedMNIST has it
    assert json.loads(json.dumps(found.to_dict()))['classes'][0]['class'] == '0'


def test_one_class_alone_has_no_auroc() -> None:
    found = figures_of(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 0, 0]), 'abc')
    assert figures_of(torch.eye(3)[[0, 0, 0]], torch.tensor([0, 0, 0]), 'abc').kappa is None
    assert found.auroc is None and found.average_precision == pytest.approx(1.) and 'auroc' not in found.to_dict()
    assert [row.auroc for row in found.classes] == [None] * 3 and found.classes[0].most_taken_for == 'b'
    assert found.classes[1].f1 == 0 and found.classes[2].f1 is None and found.classes[2].precision is None


def test_calibration_error_of_two_bins() -> None:
    """Of four images at 60 % two are right, of four at 90 % all."""
    p = np.array([[0.6, 0.4]] * 4 + [[0.9, 0.1]] * 4)
    labels = np.array([0, 0, 1, 1, 0, 0, 0, 0])
    counts, sure, right = reliability(p, labels)
    assert sorted(counts.tolist())[-2:] == [4, 4] and counts.sum() == 8
    assert sure[counts > 0] == pytest.approx([0.6, 0.9]) and right[counts > 0] == pytest.approx([0.5, 1.])
    found = figures_of(torch.from_numpy(p).log(), torch.from_numpy(labels), 'ab')
    assert found.calibration_error == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)


def test_the_temperature_minimizes_the_loss_and_mends_the_calibration() -> None:
    """Outputs that are three times as sure as they should be."""
    logits, labels = made_up(2000, 5, 3)
    own = fit_temperature(logits, labels)
    found = fit_temperature(3 * logits, labels)
    assert found == pytest.approx(3 * own, rel=1e-6)
    loss = [figures_of(logits / t, labels, 'abcde').loss for t in (own / 1.1, own, own * 1.1)]
    assert loss[1] == min(loss)
    figures = figures_of(3 * logits, labels, 'abcde', readout=Readout(found))
    assert figures.temperature == found and figures.loss > loss[1]      # of the logits as they are
    assert figures.calibrated_error is not None and figures.calibrated_error < figures.calibration_error / 3
    assert 0.05 < fit_temperature(torch.eye(4), torch.arange(4)) < 1    # all are right: sure, but of a finite one
    assert fit_temperature(torch.eye(2)[[1, 0]], torch.tensor([0, 1])) == pytest.approx(100)    # all are wrong
    with pytest.raises(ZooError, match='not finite'):
        fit_temperature(logits * math.nan, labels)


def test_bootstrap_intervals() -> None:
    """They hold the figure, are wide where images are few, come again with the same seed, and agree with Wilson's."""
    logits, labels = made_up(400, 4, 0)
    found, again, few = (figures_of(logits[:n], labels[:n], 'abcd', bootstrap=200) for n in (400, 400, 40))
    assert found == again and not figures_of(logits, labels, 'abcd').intervals
    for name, (low, high) in found.intervals.items():
        assert low < getattr(found, name) < high
        assert few.intervals[name][1] - few.intervals[name][0] > 1.5 * (high - low)
    assert found.intervals['top1'] == pytest.approx(found.interval, abs=1.)
    assert set(found.intervals) == {'top1', 'balanced_accuracy', 'f1', 'auroc', 'average_precision'}


def test_classes_without_images_are_in_every_resample_of_the_f1() -> None:
    """Predicted once or twice each, they are 0; not predicted in a resample, they would leave its mean."""
    logits, labels = made_up(300, 30, 0)
    labels %= 3
    logits[torch.arange(300), labels] += 2
    several = F.one_hot(labels, 30).to(torch.uint8)
    for found in (figures_of(logits, labels, [str(i) for i in range(30)], bootstrap=100),
                  figures_of(8 * logits - 20, several, [str(i) for i in range(30)], bootstrap=100)):
        low, high = found.intervals['f1']
        assert low < found.f1 < high


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('labels', [
    torch.tensor([1, 1]), torch.tensor([0]), torch.zeros(2, 3, dtype=torch.uint8), torch.ones(1, 3, dtype=torch.uint8)])
def test_what_has_no_interval_is_left_out(labels: Tensor) -> None:
    found = figures_of(torch.eye(3)[:len(labels)], labels, 'abc', bootstrap=20)
    assert found.intervals and 'auroc' not in found.intervals and found.auroc is None


@pytest.mark.parametrize('logits, labels, message', [
    (torch.full((2, 3), math.nan), [0, 1], 'not finite'), (torch.zeros(2, 4), [0, 1], 'one column for each'),
    (torch.zeros(0, 3), [], 'one label for each row'), (torch.zeros(2, 3), [0], 'one label for each row'),
    (torch.zeros(2, 3), [0, 3], 'labels from 0 to 3')])
def test_what_has_no_figures(logits: Tensor, labels: list[int], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        figures_of(logits, torch.tensor(labels, dtype=torch.int64), 'abc')


def test_as_a_table() -> None:
    pandas = pytest.importorskip('pandas')
    found = figures_of(*made_up(50, 3, 1), ['cat', 'dog', 'cow']).to_pandas()
    assert isinstance(found, pandas.DataFrame) and list(found.index) == ['cat', 'dog', 'cow']
    assert found['images'].sum() == 50 and {'f1', 'auroc'} <= {*found.columns}
    for labels in (torch.tensor([0, 1]), torch.eye(2, dtype=torch.uint8)):      # as evaluate(per_class=False) has it
        figures = figures_of(torch.eye(2), labels, 'ab')
        empty = replace(figures, classes=[]).to_pandas()
        assert not len(empty) and list(empty.columns) == list(figures.to_pandas().columns)


@pytest.mark.parametrize('correct, count, expected', [
    (95, 100, (88.825, 97.846)), (0, 10, (0., 27.754)), (10, 10, (72.246, 100.)), (5000, 10000, (49.020, 50.980))])
def test_wilson(correct: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson(correct, count) == pytest.approx(expected, abs=2e-3)


def test_wilson_against_its_equation() -> None:
    """The ends are the shares p from which the share found is 1.96 deviations of p away."""
    for correct, count in ((3, 17), (160, 171), (9912, 10000)):
        for end in wilson(correct, count):
            p = end / 100
            assert abs(correct / count - p) == pytest.approx(1.959964 * (p * (1 - p) / count) ** 0.5, rel=1e-6)


# -- pictures ----------------------------------------------------------------------------------------------
def test_confusion_shows_shares_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(under_test, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    plot_confusion([[3, 1, 0], [0, 5, 5], [0, 0, 0]], ['a', 'b', 'c'], 'title', tmp_path / 'm.svg')
    axes = figures[0].axes[0]
    assert np.allclose(axes.images[0].get_array(), [[75, 25, 0], [0, 50, 50], [0, 0, 0]])
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {
        ((0, 0), '75.0'), ((1, 0), '25.0'), ((1, 1), '50.0'), ((2, 1), '50.0')}
    assert [t.get_text() for t in axes.get_yticklabels()] == ['a', 'b', 'c'] and figures[0].get_suptitle() == 'title'
    assert (tmp_path / 'm.svg').read_text().startswith('<?xml') and len(list(tmp_path.iterdir())) == 1


def test_names_of_a_hundred_classes_do_not_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(under_test, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    plot_confusion(np.eye(100, dtype=int), [f'class {i}' for i in range(100)], '', tmp_path / 'm.png')
    boxes = [label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()]
    assert len(boxes) == 100 and boxes[0].height > 6
    gaps = [above.y0 - below.y1 for above, below in pairwise(boxes)]
    assert min(gaps) > -1       # pixels


@pytest.mark.parametrize('longest', [2, 20, 60])
def test_long_names_leave_room(longest: int, tmp_path: Path, drawn: Callable[[], Any]) -> None:
    """For the matrix, whose cells stay as large, and for the title, in lines that fit."""
    names, title = ['a', 'b' * longest, 'c', 'd'], f'{"long/" * 30}run on digits: 93.10 %'
    plot_confusion(np.eye(4, dtype=int), names, title, tmp_path / 'm.png')
    figure = drawn()
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().width > 4.2 * figure.dpi
    edge, heading = figure.bbox, figure.texts[0].get_window_extent()
    assert heading.x0 > 0 and heading.x1 < edge.x1 and '93.10\xa0%' in figure.get_suptitle()
    labels = torch.arange(4).roll(1)
    split = Split(ArrayImages(torch.zeros(4, 5, 5, dtype=torch.uint8), title), labels)
    plot_mistakes(10 * torch.eye(4), labels, split, names, title, tmp_path / 'm.png')
    drawn().draw_without_rendering()
    boxes = [text.get_window_extent() for axes in drawn().axes for text in (axes.title, axes.texts[0])]
    assert min(box.x0 for box in boxes) >= 0 and max(box.x1 for box in boxes) <= drawn().bbox.x1
    assert all(left.x1 < right.x0 for row in (boxes[::2], boxes[1::2]) for left, right in pairwise(row))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Return the last figure that was written."""
    figures: list[Any] = []
    for module in (under_test, calibration):
        monkeypatch.setattr(module, 'write_picture', lambda *args: figures.append(args[0]) or write_picture(*args))
    return lambda: figures[-1]


def test_the_most_wrong_images_come_first(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    """Two of four are wrong, the third one most."""
    pixels = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 5, 6) * 60
    split = Split(ArrayImages(pixels, 'x'), torch.tensor([0, 1, 1, 0]))
    logits = torch.tensor([[3., 0.], [1., 0.], [4., 0.], [2., 0.]])
    plot_mistakes(logits, split.labels, split, ['cat', 'a dog of a very long name'], 'title', tmp_path / 'a.png')
    panels = drawn().axes
    assert [int(panel.images[0].get_array()[0, 0]) for panel in panels] == [120, 60]
    assert [panel.texts[0].get_text() for panel in panels] == ['x[2]', 'x[1]']
    assert panels[0].get_title() == 'a dog of a\u2026long name\ntaken for cat (98 %)' and (tmp_path / 'a.png').exists()
    plot_mistakes(logits[:1], split.labels[:1], split, 'ab', 'title', tmp_path / 'a.png')
    assert drawn().get_suptitle() == 'title: no mistake'


def test_reliability_shows_bins(tmp_path: Path, drawn: Callable[[], Any]) -> None:
    p = np.array([[0.6, 0.4]] * 4 + [[0.9, 0.1]] * 4)
    logits, labels = torch.from_numpy(p).log(), torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
    plot_reliability(logits, labels, 'title', tmp_path / 'a.svg')
    upper, lower = drawn().axes
    assert sorted(bar.get_height() for bar in upper.patches) == [0.5, 1.]
    assert sum(bar.get_height() for bar in lower.patches) == pytest.approx(100)
    plot_reliability(logits, labels, 'title', tmp_path / 'a.svg', Readout(1.5))
    texts = [text.get_text() for text in drawn().axes[0].get_legend().get_texts()]
    assert [text.rpartition(', ')[2] for text in texts[1:]] == ['not scaled', 'scaled']
