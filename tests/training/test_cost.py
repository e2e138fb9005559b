"""The cost of a training: every forward pass at 2 FLOP a multiply-add, every trained one at 6."""
from dataclasses import replace

import pytest
import timm

from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.measure.counting import count
from tinyvit_zoo.methods import METHODS, Method
from tinyvit_zoo.recipes import PRETRAINING_PRESETS, RECIPES, Pretraining
from tinyvit_zoo.training.cost import before, pflop, pflop_of

RECIPE = replace(RECIPES['cct_2_3x2.c10'], epochs=1)


def _macs(name: str, size: int = 32, num_classes: int = 10) -> int:
    return count(timm.create_model(name, num_classes=num_classes, img_size=size, device='meta')).macs


def test_a_supervised_training() -> None:
    assert pflop_of('cct_2_3x2.c10_200e') == pytest.approx(200 * 50_000 * 6 * _macs('cct_2_3x2') / 1e15)
    assert pflop_of('cct_2_3x2.c10_200e') == pytest.approx(2.1, abs=0.05)       # as its authors trained it
    grown = pflop(replace(RECIPE, sizes=(16, 32)), 10 ** 15, 10)
    assert grown == pytest.approx(3 * (_macs('cct_2_3x2', 16) + _macs('cct_2_3x2')))
    taught = pflop(replace(RECIPE, teacher='cct_4_3x2.shi_c10_200e'), 10 ** 15, 10)
    assert taught == pytest.approx(6 * _macs('cct_2_3x2') + 2 * _macs('cct_4_3x2'))


def test_the_passes_of_a_pretraining() -> None:
    """Two whole views for the teacher; the student sees those and two local ones besides."""
    def flop(method: str, model: str = 'ssl_vit', **changes: object) -> float:
        return pflop(replace(PRETRAINING_PRESETS[method], name=f'{model}.x', epochs=1, **changes), 10 ** 15, 0)

    whole, local = _macs('ssl_vit', num_classes=0), _macs('ssl_vit', 16, num_classes=0)
    encoders = 2 * 2 * whole + 6 * (2 * whole + 2 * local)
    assert encoders < flop('self_distill') < 1.1 * encoders         # and the heads
    assert 16 * whole < flop('moco_v3') < 1.2 * 16 * whole
    assert flop('mae_small') < 0.5 * 6 * whole                      # three quarters of the patches are masked
    assert flop('d_mae', 'vit_lite_4_4', teacher='vit_lite_4_4') > flop('mae_lite', 'vit_lite_4_4')


def test_what_comes_before() -> None:
    assert before(RECIPES['mae_vit_c10.c10_100e']) == ['mae_vit_c10.c10_mae'] and before(RECIPE) == []
    assert before(replace(RECIPE, teacher='cct_4_3x2.c10')) == ['cct_4_3x2.c10']


def test_a_method_that_needs_values_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deciding(Method):
        def __init__(self, encoder: object) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: object) -> object:
            return images if self.encoder(images).sum() > 0 else -images

    monkeypatch.setitem(METHODS, 'deciding', Deciding)
    with pytest.raises(ZooError, match='The cost of deciding cannot be counted'):
        pflop(Pretraining(name='ssl_vit.x', about='', method='deciding'), 1, 0)
