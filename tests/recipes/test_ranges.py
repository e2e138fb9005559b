"""Values that are not allowed are named, with what is."""
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tinyvit_zoo import ZooError
from tinyvit_zoo.recipes import Pretraining, Recipe
from tinyvit_zoo.recipes.ranges import FROM_0, POSITIVE, SHARE, Choice, check_fields, setting

RECIPE = Recipe(name='cct_2_3x2.x', about='')


@pytest.mark.parametrize('allowed, value, message', [
    (SHARE, 2, 'x is 2, expected 0 to 1.'), (SHARE, 'a', "x is 'a', expected 0 to 1."),
    (FROM_0, float('nan'), 'x is nan, expected 0 to 1,000,000.'),
    (POSITIVE.of(2), (1, 0), r'x is \(1, 0\), expected 2 numbers, each above 0.'),
    (POSITIVE.of(2), (1, True), r'x is \(1, True\), expected 2 numbers'), (SHARE, True, 'x is True, expected 0 to 1'),
    (POSITIVE.of(2), (1,), r'x is \(1,\), expected 2 numbers'), (POSITIVE.of(2), 1, 'x is 1, expected 2 numbers'),
    (Choice(('a', 'b')), 'c', "x is 'c', expected 'a' or 'b'.")])
def test_what_is_not_allowed(allowed: Any, value: Any, message: str) -> None:
    with pytest.raises(ZooError, match=message):
        allowed.check(x=value)


def test_none_is_a_setting_left_out() -> None:
    SHARE.check(x=None, y=0.5)
    POSITIVE.of(2).check(x=None, y=[1, 2.])


def test_fields_carry_their_limits() -> None:
    @dataclass
    class Settings:
        share: float = setting(0.5, 'a share', SHARE)
        free: float = 7.

    check_fields(Settings(1., -1.))
    with pytest.raises(ZooError, match='share is 3'):
        check_fields(Settings(3.))


@pytest.mark.parametrize('changes, message', [
    (dict(mean=(0.5,) * 3), 'give both or neither'), (dict(epochs=5, warmup_epochs=5), 'use fewer'),
    (dict(weight_decay=0., weight_decay_end=0.1), 'weight_decay is 0'), (dict(keep='ema'), 'an ema of'),
    (dict(keep='first'), "expected 'last' or 'ema' or 'best'")])
def test_settings_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    RECIPE.check()
    with pytest.raises(ZooError, match=message):
        replace(RECIPE, **changes).check()


def test_a_pretraining_has_its_own_schedule() -> None:
    assert Pretraining(name='a.b', about='', method='mae_small').schedule == 'later_cosine'
