"""Cards keep measured and published figures apart; a recipe is shown with the figure of its weights."""
from dataclasses import replace
from pathlib import Path

import pytest

from tinyvit_zoo.publish import cards
from tinyvit_zoo.publish.cards import card, recipe_text
from tinyvit_zoo.weights import catalogue

ROOT = Path(__file__).parents[2]
FIGURES = {'top1': 90.5, 'loss': 0.25, 'images': 100, 'on': 'test images', 'date': '2026-01-31',
           'command': 'tinyvit-zoo eval', 'machine': 'a machine'}


def _row(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f'| {title} | '))


def test_a_card_keeps_measured_and_published_apart() -> None:
    theirs = card(catalogue()['cct_7_3x1.shi_c10_300e'])
    assert '96.53 %' in _row(theirs, 'published') and '| measured |' not in theirs and '| throughput |' not in theirs
    assert '3,760,139 parameters; 1,181.62 M' in _row(theirs, 'size')
    speed = {'images_per_second': 1234.5, 'batch_size': 128, 'machine': 'a machine', 'date': '2026-01-31',
             'command': 'tools/ship_weights.py'}
    ours = replace(catalogue()['cct_2_3x2.c10'], published={'top1': 89.17, 'source': 'a paper'},
                   measured={**FIGURES, 'throughput': speed})
    text = card(ours)
    assert '90.50 % top-1' in _row(text, 'measured') and '89.17' not in _row(text, 'measured')
    assert '89.17 %' in _row(text, 'published') and 'authors' in _row(text, 'published')
    assert _row(text, 'difference') == (
        '| difference | 1.33 points above the 89.17 % published for `cct_2_3x2.shi_c10_200e` |')
    assert '1,234 images/s' in _row(text, 'throughput') and ours.sha256 in text


def test_every_weight_has_a_line_and_a_card_with_its_caveat(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = cards.cost(catalogue()['cct_2_3x2.c10'])
    monkeypatch.setattr(cards, 'cost', lambda weight: counted)
    monkeypatch.setattr(cards, 'training_cost', lambda name: '1 PFLOP')
    text = (ROOT / 'MODEL_CARDS.md').read_text(encoding='utf-8')
    assert '1.34 points above the 89.17 % published for `cct_2_3x2.shi_c10_200e`' in card(catalogue()['cct_2_3x2.c10'])
    for w in catalogue().values():
        line = next(line for line in text.splitlines() if f'`{w.name}`' in line)
        assert line.startswith('| **') == w.default and w.data.title in line
        assert all(part in card(w) for part in (w.note, w.source, w.data.title.split('-')[0], f"'{w.name}'"))
    assert text.rstrip().endswith('(docs/images/accuracy_macs.png)')


def test_a_recipe_is_shown_with_the_figure_of_its_weights() -> None:
    weight = catalogue()['cct_2_3x2.c10']
    assert f'measured: {weight.measured["top1"]:.2f} % of 10,000 test images of CIFAR-10; ' in recipe_text(weight.name)
    assert 'measured: ' not in recipe_text('cct_2_3x2.c10_fast')
    assert 'cost: 0.679 PFLOP (64 epochs of 50,000 images)' in recipe_text(weight.name)


def test_a_recipe_that_was_not_run_says_so() -> None:
    text = recipe_text('mae_vit_c10.c10_100e')
    assert 'none of ours yet' in text and 'none of ours yet' not in recipe_text('cct_2_3x2.c10')
    assert 'plus mae_vit_c10.c10_mae, 185 PFLOP' in text
