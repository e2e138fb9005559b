"""Odd arguments of models: a model that works, or a ZooError that says what was expected."""
import inspect
import math
from typing import Any

import pytest
import timm
import torch
from fuzz_cases import cases, outcome
from hypothesis import given, strategies as st

from tinyvit_zoo import list_models

ODD: Any = st.sampled_from([
    -1, 0, 1, 2, 3, 1.5, 0.5, -0.5, math.nan, math.inf, -math.inf, None, True, False, 'x', '', '3', (), (1,), (0, 0),
    (32, 32), (2.5, 3), (math.nan, 3), (1, 2, 3), [], [3], {}, {1: 2}, b'x', 1 + 1j, 2 ** 31, 2 ** 63, 10 ** 30,
    -10 ** 20, 1e308, 1e-320, '\x1b[31m', 'a\nb', object(), int, set(), range(3), torch.tensor([1., 2.])])
SMALL = ['cct_2_3x2', 'vit_lite_2_4', 'cvt_2_4', 'fast_cnn_half', 'plain_vit', 'sl_vit', 'sl_pit', 'sl_swin', 'sl_t2t',
         'ssl_swin', 'ssl_vit', 'mae_vit_c10', 'mae_lite_vit_tiny_rpe']
BUILDER = ('features_only', 'out_indices', 'pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir', 'device', 'dtype')


@cases(100)
@given(data=st.data())
def test_an_odd_argument(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(SMALL))
    known = [key for key in inspect.signature(type(timm.create_model(name, device='meta')).__init__).parameters
             if key not in ('self', 'kwargs')]
    given = data.draw(st.dictionaries(st.sampled_from([*known, *BUILDER]), ODD, min_size=1, max_size=2))
    if 'out_indices' in given:
        given['features_only'] = True
    model, message = outcome(lambda: timm.create_model(name, **given))
    assert message or model is not None
    if model is None or given.keys() & {*BUILDER}:
        return
    size = getattr(model, 'img_size', None) or model.patch_embed.img_size
    with torch.no_grad():
        logits = model(torch.zeros(2, model.in_chans, *size))
    assert torch.isfinite(logits).all()
    assert given.get('global_pool') == '' or len(logits[0]) == model.num_classes or not model.num_classes


def test_an_error_inside_a_given_layer_is_one_line() -> None:
    """As if the layer, and not the model, had no such argument."""
    message = outcome(lambda: timm.create_model('mae_vit_c10', mlp_layer=torch.nn.LayerNorm))[1]
    assert message.startswith('mae_vit_c10 cannot be built with mlp_layer=')
    with pytest.raises(TypeError, match='depht'):
        timm.create_model('mae_vit_c10', depht=2)


def test_no_model_is_larger_than_the_memory() -> None:
    for odd in ({'embed_dim': 8192, 'depth': 256}, {'img_size': 4096, 'depth': 256, 'embed_dim': 1024}):
        assert 'GiB of memory' in outcome(lambda odd=odd: timm.create_model('vit_lite', **odd))[1]
    small = outcome(lambda: timm.create_model('mae_lite_vit_tiny_rpe', patch_size=2))   # a bias for each pair of 12,544
    assert '14.1 GiB of memory' in small[1]


@pytest.mark.parametrize('name', list_models())
@pytest.mark.parametrize('odd', [
    {'num_classes': -1}, {'in_chans': 0}, {'drop_path_rate': math.nan}, {'img_size': 100_000}, {'num_classes': True}],
    ids=str)
def test_every_model_refuses(name: str, odd: dict[str, Any]) -> None:
    if name.startswith('fast_cnn') and 'drop_path_rate' in odd:
        pytest.skip('it has none')
    model, message = outcome(lambda: timm.create_model(name, **odd))
    assert model is None and f'{next(iter(odd))} is {next(iter(odd.values()))}, expected' in message
