"""`tinyvit-zoo compare` shows figures for what they were measured on."""
from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tinyvit_zoo.measure import comparison
from tinyvit_zoo.weights import catalogue

Run = Callable[..., str]


def test_compare(run: Run, tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    plot = tmp_path / 'c.png'
    found = json.loads(run('compare', 'cct_2_3x2', 'vit_lite_2_4', 'sl_vit', 'vit_lite', '--dataset', 'c100',
                           '--seconds', '0', '--batch-size', '2', '--plot', str(plot), '--json'))
    cct, small, local, alias = found['models']
    assert cct['weights'] == 'cct_2_3x2.c100' and cct['num_classes'] == 100
    assert cct['measured'] == catalogue()[cct['weights']].measured['top1'] and cct['published'] is None
    assert local['weights'] is None and local['published'] == 76.92 and small['published'] is None
    assert alias['weights'] == 'vit_lite_7_4.shi_c100_200e'
    assert alias['published'] == catalogue()[alias['weights']].published['top1'] and alias['measured'] is None
    assert local['params'] == 2_747_248 and cct['ratio'] == 1
    assert local['ratio_range'][0] <= local['ratio'] <= local['ratio_range'][1] and local['rounds'] >= 3
    assert found['machine']['batch_size'] == 2 and plot.read_bytes().startswith(b'\x89PNG')


def test_what_was_measured_is_shown_as_such(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = next(w for w in catalogue().values() if w.published)
    measured = dataclasses.replace(weight, measured={'top1': 12.34})
    monkeypatch.setattr(
        comparison, 'weight_of', lambda cfg: measured if cfg.architecture == weight.architecture else None)
    lines = run('compare', weight.architecture, 'resnet18', '--no-speed').splitlines()
    assert lines[1].split()[-2:] == ['12.34', f'{weight.published["top1"]:.2f}']
    assert lines[2].split()[0] == 'resnet18' and lines[2].split()[-2:] == ['-', '-'] and 'images/s' not in lines[0]


def test_a_figure_is_shown_for_what_it_was_measured_on(run: Run) -> None:
    """Not for another size."""
    found = json.loads(run('compare', 'cct_2_3x2', '--img-size', '64', '--no-speed', '--json'))['models'][0]
    assert found['measured'] is None and found['published'] is None and found['weights']


def test_compare_refuses_before_it_times(refused: Run, tmp_path: Path) -> None:
    assert 'has no accuracy on c10' in refused('compare', 'cct_2_3x2.c10', 'cct_2_3x2.digits', '--no-speed')
    assert 'expected a name that ends in .png' in refused('compare', 'sl_vit', '--plot', 'x.bmp')
    assert 'there is no folder' in refused('compare', 'sl_vit', '--plot', str(tmp_path / 'no' / 'x.png'))
    assert 'There is no model' in refused('compare', 'sl_vit', 'sl_vat')
    if not torch.cuda.is_available():
        assert "Device 'cuda' cannot be used here" in refused('compare', 'sl_vit', '--device', 'cuda')


def test_accuracy_over_the_cost_of_training(
        run: Run, refused: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours as measured, and the papers' recipes."""
    pytest.importorskip('matplotlib')
    drawn: list[tuple] = []
    draw = comparison.plot_costs
    monkeypatch.setattr(comparison, 'plot_costs', lambda points, name: drawn.extend(points) or draw(points, name))
    run('compare', 'cct_2_3x2', '--dataset', 'c10', '--no-speed', '--plot-cost', str(tmp_path / 'c.png'))
    ours, theirs = drawn
    assert ours == ('cct_2_3x2.c10', 'measured', pytest.approx(0.678, abs=1e-3), catalogue()[ours[0]].measured['top1'])
    assert theirs == ('cct_2_3x2.c10_200e', 'published', pytest.approx(ours[2] * 200 / 64), 89.17)
    assert (tmp_path / 'c.png').read_bytes().startswith(b'\x89PNG')
    plot = '--no-speed', '--plot-cost', str(tmp_path / 'd.png')
    assert 'has an accuracy on MNIST' in refused('compare', 'sl_vit', '--dataset', 'mnist', *plot)
    assert 'give --dataset' in refused('compare', 'resnet18', *plot)


def test_a_missing_extra_is_named(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert "pip install 'tinyvit-zoo[analysis]'" in refused('compare', 'cct_2_3x2', '--plot', 'x.png')
