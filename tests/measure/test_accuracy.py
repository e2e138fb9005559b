"""Figures of made-up logits, and a catalogue that is wrong."""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_cases import make_bench
from torch import nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli import eval as eval_command
from tinyvit_zoo.measure import accuracy as under_test
from tinyvit_zoo.measure.accuracy import ViewAverage, accuracy
from tinyvit_zoo.measure.bench import Bench
from tinyvit_zoo.weights import Weight


def test_figures_of_made_up_logits(tmp_path: Path) -> None:
    """Eight images of seven classes, in three batches."""
    guesses = [0, 0, 1, 1, 2, 2, 3, 4]
    labels = [0, 0, 0, 1, 2, 1, 6, 5]
    logits = torch.zeros(8, 7)
    logits[range(8), guesses] = 5.
    logits[6] = torch.tensor([4., 3., 2., 5., 1., -1., 0.])        # its class, 6, is the sixth best
    logits[7] = torch.tensor([4., 3., 2., 1., 5., 4.5, 0.])        # its class, 5, is the second best
    found = accuracy(make_bench(tmp_path, logits, labels))
    assert found.images == 8 and found.top1 == pytest.approx(50.)
    hits = sum(label in logits[i].topk(5).indices.tolist() for i, label in enumerate(labels))
    assert found.top5 == pytest.approx(100 * hits / 8) and 4 < hits < 8
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, torch.tensor(labels)).item())
    expected = np.zeros((7, 7), int)
    np.add.at(expected, (labels, guesses), 1)
    assert np.array_equal(found.confusion, expected)
    rows = found.classes
    assert [(r.name, r.images, r.correct) for r in rows[:3]] == [('0', 3, 2), ('1', 2, 1), ('2', 1, 1)]
    assert rows[0].top1 == pytest.approx(200 / 3) and (rows[0].most_taken_for, rows[0].times) == ('1', 1)
    assert rows[2].most_taken_for is None and rows[2].times == 0
    assert rows[3].images == 0 and rows[3].top1 is None and rows[3].interval is None


def test_a_model_that_is_always_right_or_wrong(tmp_path: Path) -> None:
    labels = [0, 1, 2, 0, 1]
    right = accuracy(make_bench(tmp_path, 9 * torch.eye(3)[labels], labels))
    wrong = accuracy(make_bench(tmp_path, -9 * torch.eye(3)[labels], labels))
    assert (right.top1, wrong.top1) == (100., 0.) and right.top5 is None
    assert right.interval[1] == 100. and wrong.interval[0] == 0.
    assert right.interval[0] == pytest.approx(100 - wrong.interval[1])


def test_the_logits_of_views_are_averaged() -> None:
    class Corner(nn.Module):
        """Two logits: the upper left pixel and the upper right one."""
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0, 0, 0], x[:, 0, 0, -1]], 1)

    x = torch.arange(16.).view(1, 1, 4, 4)
    views = {'flip': [(0., 3.), (3., 0.)], 'shift': [(0., 3.), (5., 6.), (5., 6.)]}
    views['flip+shift'] = views['shift'] + [(b, a) for a, b in views['shift']]
    for name, logits in views.items():
        torch.testing.assert_close(ViewAverage(Corner(), name)(x)[0], torch.tensor(logits).mean(0))


# -- eval --all --------------------------------------------------------------------------------------------------------
def entry(name: str, dataset: str, top1: float | None, **more: Any) -> Weight:
    measured = None if top1 is None else {'top1': top1, 'on': 'test', 'date': '2026-01-01', 'command': 'x'}
    return Weight(name=name, dataset=dataset, input_size=(3, 32, 32), crop_pct=1., origin='us', recipe='r', url='u',
                  measured=measured, **more)


def check_all(
        weights: list[Weight], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, top1: float, as_json: bool) -> str:
    """--all with 200 images, of which `top1` percent are told rightly, by every weight."""
    monkeypatch.setattr(under_test, 'catalogue', lambda: {w.name: w for w in weights})
    labels = (np.arange(200) % 10).tolist()
    logits = torch.eye(10)[labels]
    logits[round(2 * top1):] = logits[round(2 * top1):].roll(1, 1)
    made = make_bench(tmp_path, logits, labels)

    def make(name: str, source: Any) -> Bench:
        if 'lost' in name:
            raise ZooError('No network.')
        return made

    args = argparse.Namespace(data=[f'c10=npz:{tmp_path / "made.npz"}'], download=False, json=as_json)
    return eval_command._check_catalogue(args, make)


def test_all_weights_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rounded as shown. Other data sets and encoders are not looked at; what cannot be had is said, not failed."""
    weights = [entry('m.a', 'c10', 80.499), entry('m.b', 'c10', None), entry('m.c', 'c100', 1.), entry(
        'm.d', 'c10', None, encoder=True), entry('m.lost', 'c10', 90.)]
    text = check_all(weights, monkeypatch, tmp_path, 80.5, False)
    lines = text.splitlines()
    assert lines[1].split() == ['m.a', 'made', '80.50', '80.50', 'agrees']
    assert lines[2].split() == ['m.b', 'made', '-', '80.50', 'no', 'figure']
    assert lines[3].split() == ['m.lost', 'made', '90.00', '-', 'not', 'to', 'be', 'had'] and 'm.c' not in text
    assert lines[5] == 'agrees: 1, no figure: 1, not to be had: 1' and lines[6] == 'm.lost: No network.'


def test_a_wrong_figure_is_exit_code_1(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = [entry('m.a', 'c10', 80.5), entry('m.b', 'c10', 80.51), entry('m.c', 'c10', 80.5)]
    weights[2].measured['loss'] = 3.
    with pytest.raises(SystemExit) as error:
        check_all(weights, monkeypatch, tmp_path, 80.5, True)
    rows = json.loads(capsys.readouterr().out)
    assert error.value.code == 1 and [row['outcome'] for row in rows] == ['agrees', 'DIFFERS', 'DIFFERS']
    assert rows[1]['catalogue'] == {'top1': 80.51} and rows[1]['now']['top1'] == pytest.approx(80.5)
    assert [row['differs'] for row in rows] == [[], ['top1'], ['loss']]
    with pytest.raises(SystemExit):
        check_all(weights[1:], monkeypatch, tmp_path, 80.5, False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ['m.b', 'made', '80.51', '80.50', 'DIFFERS'] and lines[4] == 'DIFFERS: 2'
    assert lines[2].endswith(f'80.50  DIFFERS: loss 3.0000 is now {rows[2]["now"]["loss"]:.4f}')


def test_a_weight_that_ships_has_to_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match='No network'):
        check_all([entry('m.lost', 'c10', 80.5, file='f')], monkeypatch, tmp_path, 80.5, False)


def test_what_cannot_be_had_is_told_in_few_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = check_all([entry(f'm.lost{i}', 'c10', None) for i in range(5)], monkeypatch, tmp_path, 80.5, False)
    assert text.splitlines()[-1] == 'And 3 more: see --json.' and text.count('No network') == 2


def test_no_weight_for_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match='no classifier for c10: it has some for c100'):
        check_all([entry('m.c', 'c100', 1.)], monkeypatch, tmp_path, 80.5, False)
