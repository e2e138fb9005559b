"""Figures of made-up logits, and the interval."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from bench_cases import make_bench
from torch import nn

from tinyvit_zoo.measure.accuracy import accuracy, wilson


def test_figures_of_made_up_logits(tmp_path: Path) -> None:
    """Eight images of seven classes, in three batches."""
    guesses = [0, 0, 1, 1, 2, 2, 3, 4]
    labels = [0, 0, 0, 1, 2, 1, 6, 5]
    logits = torch.zeros(8, 7)
    logits[range(8), guesses] = 5.
    logits[6] = torch.tensor([4., 3., 2., 5., 1., -1., 0.])        # its class, 6, is the sixth best
    logits[7] = torch.tensor([4., 3., 2., 1., 5., 4.5, 0.])        # its class, 5, is the second best
    found = accuracy(make_bench(tmp_path, logits, labels))
    assert found['images'] == 8 and found['top1'] == pytest.approx(50.)
    hits = sum(label in logits[i].topk(5).indices.tolist() for i, label in enumerate(labels))
    assert found['top5'] == pytest.approx(100 * hits / 8) and 4 < hits < 8
    assert found['loss'] == pytest.approx(nn.functional.cross_entropy(logits, torch.tensor(labels)).item())
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (labels, guesses), 1)
    assert np.array_equal(found['confusion'], expected)
    rows = found['classes']
    assert [(r['class'], r['images'], r['correct']) for r in rows[:3]] == [('0', 3, 2), ('1', 2, 1), ('2', 1, 1)]
    assert rows[0]['top1'] == pytest.approx(200 / 3) and (rows[0]['most_taken_for'], rows[0]['times']) == ('1', 1)
    assert rows[2]['most_taken_for'] is None and rows[2]['times'] == 0
    assert rows[3]['images'] == 0 and rows[3]['top1'] is None and rows[3]['interval'] is None


def test_a_model_that_is_always_right_or_wrong(tmp_path: Path) -> None:
    labels = [0, 1, 2, 0, 1]
    right = accuracy(make_bench(tmp_path, 9 * torch.eye(3)[labels], labels))
    wrong = accuracy(make_bench(tmp_path, -9 * torch.eye(3)[labels], labels))
    assert (right['top1'], wrong['top1']) == (100., 0.) and 'top5' not in right
    assert right['interval'][1] == 100. and wrong['interval'][0] == 0.
    assert right['interval'][0] == pytest.approx(100 - wrong['interval'][1])


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
