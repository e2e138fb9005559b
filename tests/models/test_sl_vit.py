"""plain_vit and sl_vit give the authors' numbers, with each add-on on or off, at any size, class and channel count."""
from typing import Any

import pytest
import timm
import torch
from parity import fill, images, load_fixtures
from parity_sl import fill_all, vit_forward, vit_shapes
from torch import nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models.sl_vit import checkpoint_filter_fn

ADD_ONS = [(False, False), (True, False), (False, True), (True, True)]
NAMES = ['plain_vit', 'sl_vit', 'plain_vit_64', 'sl_vit_64']


def load(name: str, state: dict, **kwargs: Any) -> nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


@pytest.mark.parametrize(
    'case', [c for c in load_fixtures('spt_lsa') if '_vit_' in c['name']], ids=lambda case: case['name'])
@torch.no_grad()
def test_fixture(case: dict) -> None:
    """The authors' own numbers; the plain definition in parity_sl.py is held to them too."""
    state = {name: fill(name, shape) for name, shape in case['state'].items()}
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load(case['name'].removesuffix('_32_c10'), state)
    x = images(case['input'], case['image_seed'])
    assert sum(p.numel() for p in model.parameters()) == case['params']
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(vit_forward(x, state, 4), expected, rtol=0, atol=1e-9)
    spt = case['name'].startswith('sl')
    assert vit_shapes((32, 32), 3, 10, 4, spt, spt) == case['state']


@pytest.mark.parametrize('spt, lsa', ADD_ONS)
@pytest.mark.parametrize('name, img, chans, classes', [
    ('sl_vit', (32, 32), 3, 100), ('sl_vit_64', (64, 64), 3, 200), ('plain_vit', (28, 28), 1, 10),
    ('sl_vit', (37, 22), 5, 2), ('sl_vit_64', (24, 72), 4, 0), ('sl_vit', (4, 4), 2, 3),
])
@torch.no_grad()
def test_every_combination(
        name: str, spt: bool, lsa: bool, img: tuple[int, int], chans: int, classes: int) -> None:
    patch = 8 if name.endswith('_64') else 4
    state = fill_all(vit_shapes(img, chans, classes, patch, spt, lsa))
    model = load(name, state, img_size=img, in_chans=chans, num_classes=classes, spt=spt, lsa=lsa)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), vit_forward(x, state, patch), rtol=0, atol=1e-9)


@pytest.mark.parametrize('patch', [1, 3, 5])
@torch.no_grad()
def test_any_patch(patch: int) -> None:
    """An odd patch is shifted by half of it, rounded down."""
    state = fill_all(vit_shapes((11, 7), 3, 10, patch, True, True, depth=2, dim=24, heads=3))
    model = load('sl_vit', state, img_size=(11, 7), patch_size=patch, depth=2, embed_dim=24, num_heads=3)
    x = images([2, 3, 11, 7])
    torch.testing.assert_close(model(x), vit_forward(x, state, patch, heads=3), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, classes, kwargs, count', [
    ('plain_vit', 10, {}, 2_692_426), ('sl_vit', 10, {}, 2_729_878), ('plain_vit', 100, {}, 2_709_796),
    ('sl_vit', 100, {}, 2_747_248), ('plain_vit_64', 200, {}, 2_756_744), ('sl_vit_64', 200, {}, 2_906_228),
    ('sl_vit', 10, dict(lsa=False), 2_729_770), ('plain_vit', 10, dict(spt=True), 2_729_770),
    ('sl_vit', 10, dict(spt=False), 2_692_534), ('plain_vit', 10, dict(lsa=True), 2_692_534),
])
def test_parameter_count(name: str, classes: int, kwargs: dict, count: int) -> None:
    model = timm.create_model(name, num_classes=classes, device='meta', **kwargs)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize('name, classes, macs', [
    ('plain_vit', 10, 187.72), ('sl_vit', 10, 190.08), ('plain_vit_64', 200, 189.52), ('sl_vit_64', 200, 198.96)])
def test_multiply_accumulates(name: str, classes: int, macs: float) -> None:
    model = timm.create_model(name, num_classes=classes, device='meta')
    assert counting.count(model).macs / 1e6 == pytest.approx(macs, abs=0.01)


def test_initialisation_is_the_authors() -> None:
    model = timm.create_model('sl_vit')
    assert model.pos_embed.std().item() == pytest.approx(1, abs=0.02) and model.pos_embed.abs().max() > 2.5
    assert model.cls_token.std().item() == pytest.approx(1, abs=0.2)
    for linear in (model.blocks[3].attn.qkv, model.blocks[0].mlp.fc1, model.tokenizer.proj):
        fans = sum(linear.weight.shape)
        assert linear.weight.std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.03)
    assert all((block.attn.temperature == 16 ** -0.5).all() for block in model.blocks)


def test_drop_path_is_the_same_in_every_block() -> None:
    model = timm.create_model('plain_vit')
    assert {(b.drop_path1.drop_prob, b.drop_path2.drop_prob) for b in model.blocks} == {(0.1, 0.1)}
    drops = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert set(drops) == {0.}


def test_weight_decay_spares_positions_class_token_and_temperatures() -> None:
    model = timm.create_model('sl_vit', depth=2)
    assert model.no_weight_decay() == {
        'pos_embed', 'cls_token', 'blocks.0.attn.temperature', 'blocks.1.attn.temperature'}


def test_weights_can_be_initialised_after_to_empty() -> None:
    model = timm.create_model('sl_vit', device='meta').to_empty(device='cpu')
    model.init_weights()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert (model.blocks[8].attn.temperature == 0.25).all()


@torch.no_grad()
def test_pretrained_loading_adapts_size_channels_and_classes() -> None:
    """The authors' file through timm's own path: another size, one channel, another head, each and all at once."""
    state = {k: v.float() for k, v in fill_all(vit_shapes((32, 32), 3, 10, 4, True, True)).items()}

    def create(**kwargs: Any) -> nn.Module:
        return timm.create_model(
            'sl_vit', pretrained=True, pretrained_cfg_overlay=dict(state_dict=state), **kwargs).eval()

    grey = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(create(in_chans=1)(grey), create()(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    other = create(in_chans=1, num_classes=7, img_size=(48, 20))
    assert other(torch.randn(2, 1, 48, 20)).shape == (2, 7)
    assert torch.equal(other.pos_embed[:, 0], state['pos_embedding'][:, 0])
    resized = create()
    resized.set_input_size((48, 20))
    torch.testing.assert_close(resized.pos_embed, other.pos_embed)


def test_another_combination_is_refused_by_name() -> None:
    state = fill_all(vit_shapes((32, 32), 3, 10, 4, True, True))
    with pytest.raises(ZooError, match='temperature is not part of it'):
        timm.create_model('sl_vit', pretrained=True, lsa=False, pretrained_cfg_overlay=dict(state_dict=state))
    with pytest.raises(ZooError, match=r'tokenizer.proj.weight is \[192, 240\], expected \[192, 48\]'):
        timm.create_model('sl_vit', pretrained=True, spt=False, pretrained_cfg_overlay=dict(state_dict=state))


def test_a_size_without_tokens_says_which_sizes_have_some() -> None:
    with pytest.raises(ZooError, match='at least 8 x 8'):
        timm.create_model('sl_vit_64', img_size=(64, 7))
