"""Settings from text: the type of their field, or one line; other epochs keep the proportions of a schedule."""
from typing import Any

import pytest

from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.recipes import RECIPES, Pretraining, Recipe
from tinyvit_zoo.recipes.settings import override, parse, parse_assignments


@pytest.mark.parametrize(('name', 'text', 'value'), [
    ('epochs', '7', 7), ('lr', '1e-3', 1e-3), ('opt', 'sgd', 'sgd'), ('decay_all', 'Yes', True),
    ('crop_scale', '(0.5, 1.)', (0.5, 1.)), ('crop_scale', 'None', None), ('weight_decay_end', '1', 1.),
    ('model_args', "{'depth': 2}", {'depth': 2}),
])
def test_text_becomes_the_type_of_its_field(name: str, text: str, value: Any) -> None:
    parsed = parse(Recipe if name != 'weight_decay_end' else Pretraining, name, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(('name', 'text', 'expected'), [
    ('batch_size', '1.5', '--batch-size is \'1.5\', expected a whole number'), ('lr', 'fast', 'a number'),
    ('decay_all', 'maybe', 'true or false'), ('crop_scale', 'half', r'a value like \(0.6, 1.0\)'),
    ('model_args', '3', 'a value like'), ('std', '-' * 5000 + '1', 'a value like'), ('std', '1', r'like \(0.25, 0.25'),
    ('min_lr', 'True', 'a number'), ('betas', '__import__("os")', 'a value like'),
])
def test_other_text_is_refused(name: str, text: str, expected: str) -> None:
    with pytest.raises(ZooError, match=expected):
        parse(Recipe, name, text)


def test_settings_of_a_pretraining() -> None:
    assert parse_assignments(['epochs=5', 'batch-size=64']) == {'epochs': 5, 'batch_size': 64}
    for text in ('epochs', 'epoch=5', 'seed=1'):
        with pytest.raises(ZooError, match='not a SETTING=VALUE'):
            parse_assignments([text])


def test_epochs_scale_the_schedule() -> None:
    recipe = override(RECIPES['cct_7_3x1.c10_300e'], {'epochs': 30})
    assert (recipe.epochs, recipe.warmup_epochs, recipe.cooldown_epochs, recipe.mix_off_epoch) == (30, 1., 1, 18)
    assert override(RECIPES['cct_7_3x1.c10_300e'], {'epochs': 30, 'warmup_epochs': 5.}).warmup_epochs == 5
