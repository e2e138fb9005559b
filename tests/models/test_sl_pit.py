"""plain_pit and sl_pit give the authors' numbers, with each add-on on or off, at any size, class and channel count."""
from typing import Any

import pytest
import timm
import torch
from parity import fill, images, load_fixtures
from parity_sl import fill_all, pit_forward, pit_shapes
from torch import nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models.sl_pit import checkpoint_filter_fn

ADD_ONS = [(False, False), (True, False), (False, True), (True, True)]


def load(name: str, state: dict, **kwargs: Any) -> nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.stages for block in stage.blocks]


@torch.no_grad()
def test_fixture() -> None:
    """The authors' own numbers; the plain definition in parity_sl.py is held to them too."""
    case, = (c for c in load_fixtures('spt_lsa') if '_pit_' in c['name'])
    state = {name: fill(name, shape) for name, shape in case['state'].items()}
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load('sl_pit', state)
    x = images(case['input'], case['image_seed'])
    assert sum(p.numel() for p in model.parameters()) == case['params']
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(pit_forward(x, state, 2), expected, rtol=0, atol=1e-9)
    assert pit_shapes((32, 32), 3, 10, 2, True, True) == case['state']


@pytest.mark.parametrize('spt, lsa', ADD_ONS)
@pytest.mark.parametrize('name, img, chans, classes', [
    ('sl_pit', (32, 32), 3, 100), ('sl_pit_64', (64, 64), 3, 200), ('plain_pit', (28, 28), 1, 10),
    ('sl_pit', (23, 14), 5, 2), ('sl_pit_64', (20, 44), 4, 0), ('sl_pit', (8, 8), 2, 3),
])
@torch.no_grad()
def test_every_combination(
        name: str, spt: bool, lsa: bool, img: tuple[int, int], chans: int, classes: int) -> None:
    """Odd maps: convolutions round up, shifted patches down. (8, 8) ends in one patch and the class token."""
    patch = 4 if name.endswith('_64') else 2
    state = fill_all(pit_shapes(img, chans, classes, patch, spt, lsa))
    model = load(name, state, img_size=img, in_chans=chans, num_classes=classes, spt=spt, lsa=lsa)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), pit_forward(x, state, patch), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, classes, kwargs, count', [
    ('plain_pit', 10, {}, 6_972_586), ('sl_pit', 10, {}, 8_642_014), ('plain_pit', 100, {}, 7_007_236),
    ('sl_pit', 100, {}, 8_676_664), ('plain_pit_64', 200, {}, 7_049_192), ('sl_pit_64', 200, {}, 8_732_804),
    ('sl_pit', 10, dict(lsa=False), 8_641_954), ('plain_pit', 10, dict(spt=True), 8_641_954),
    ('sl_pit', 10, dict(spt=False), 6_972_646), ('plain_pit', 10, dict(lsa=True), 6_972_646),
])
def test_parameter_count(name: str, classes: int, kwargs: dict, count: int) -> None:
    model = timm.create_model(name, num_classes=classes, device='meta', **kwargs)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize('name, classes, macs', [
    ('plain_pit', 10, 274.39), ('sl_pit', 10, 317.87), ('plain_pit_64', 200, 275.35), ('sl_pit_64', 200, 322.37)])
def test_multiply_accumulates(name: str, classes: int, macs: float) -> None:
    model = timm.create_model(name, num_classes=classes, device='meta')
    assert counting.count(model).macs / 1e6 == pytest.approx(macs, abs=0.01)


def test_initialisation_and_drop_path() -> None:
    model = timm.create_model('sl_pit')
    assert model.pos_embed.std().item() == pytest.approx(1, abs=0.02)
    linear = model.stages[2].pool.patches.proj
    assert linear.weight.std().item() == pytest.approx((2 / sum(linear.weight.shape)) ** 0.5, rel=0.03)
    assert all((block.attn.temperature == 48 ** -0.5).all() for block in blocks(model))
    assert {(b.drop_path1.drop_prob, b.drop_path2.drop_prob) for b in blocks(model)} == {(0.1, 0.1)}
    assert {name.rpartition('.')[2] for name in model.no_weight_decay()} == {'pos_embed', 'cls_token', 'temperature'}
    assert len(model.no_weight_decay()) == 2 + 12


@pytest.mark.parametrize('name, chans, reductions', [
    ('sl_pit', [96, 192, 384], [2, 4, 8]), ('plain_pit_64', [96, 192, 384], [4, 8, 16])])
@torch.no_grad()
def test_features_are_one_a_stage(name: str, chans: list[int], reductions: list[int]) -> None:
    features = timm.create_model(name, features_only=True).eval()
    size = features.pretrained_cfg['input_size'][-1]
    assert features.feature_info.channels() == chans and features.feature_info.reduction() == reductions
    maps = features(torch.randn(1, 3, size, size))
    assert [f.shape[1:] for f in maps] == [(c, size // r, size // r) for c, r in zip(chans, reductions, strict=True)]

    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, size, size)
    final, taken = model.forward_intermediates(x, norm=True, return_prefix_tokens=True, output_fmt='NLC')
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(torch.cat([taken[-1][1], taken[-1][0]], 1), final)
    assert [token.shape for _, token in taken] == [(2, 1, c) for c in chans]
    early, _ = model.forward_intermediates(x, [0], stop_early=True)
    assert early.shape[2] == 96


@torch.no_grad()
def test_pruning_leaves_a_model_of_the_width_that_is_left() -> None:
    model = timm.create_model('sl_pit', num_classes=5).eval()
    model.prune_intermediate_layers([1])
    assert len(model.stages) == 2 and model.num_features == 192
    model.reset_classifier(3, 'token')
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    kept = timm.create_model('sl_pit', num_classes=5).eval()
    kept.prune_intermediate_layers([2], prune_head=False)
    assert kept(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize('spt', [False, True])
@torch.no_grad()
def test_set_input_size(spt: bool) -> None:
    """A resized model computes what one built at that size computes, also with odd maps."""
    model = timm.create_model('sl_pit', spt=spt).eval()
    model.set_input_size((44, 26))
    built = timm.create_model('sl_pit', spt=spt, img_size=(44, 26)).eval()
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 44, 26)
    torch.testing.assert_close(model(x), built(x))
    shapes = [tuple(f.shape[2:]) for f in model.forward_intermediates(x, intermediates_only=True)]
    assert shapes == ([(22, 13), (11, 6), (5, 3)] if spt else [(22, 13), (11, 7), (6, 4)])


def test_layer_decay_goes_by_block_and_by_stage() -> None:
    model = timm.create_model('sl_pit')
    fine, coarse = (timm.models.group_parameters(model, model.group_matcher(kind)) for kind in (False, True))
    assert len(fine) == 1 + 12 + 1 and 'stages.1.pool.class_proj.bias' in fine[3]  # with the block behind it
    assert 'stages.2.blocks.0.norm1.bias' in coarse[3] and 'stages.2.pool.class_proj.bias' in coarse[3]
    for groups in (fine, coarse):
        assert sum(len(names) for names in groups.values()) == len(list(model.parameters()))


@torch.no_grad()
def test_pretrained_loading_adapts_size_channels_and_classes() -> None:
    for spt in (False, True):
        state = {k: v.float() for k, v in fill_all(pit_shapes((32, 32), 3, 10, 2, spt, True)).items()}

        def create(overlay: dict, **kwargs: Any) -> nn.Module:
            return timm.create_model('sl_pit', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()

        overlay, grey = dict(state_dict=state), torch.randn(2, 1, 32, 32)
        expected = create(overlay, spt=spt)(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(create(overlay, spt=spt, in_chans=1)(grey), expected, rtol=1e-4, atol=1e-4)
        other = create(overlay, spt=spt, in_chans=2, num_classes=7, img_size=(48, 20))
        assert other(torch.randn(2, 2, 48, 20)).shape == (2, 7)
        with pytest.raises(ZooError, match='do not fit sl_pit'):
            create(overlay, spt=not spt)


def test_a_size_without_tokens_says_which_sizes_have_some() -> None:
    with pytest.raises(ZooError, match='no token in the last stage: this model needs at least 8 x 8'):
        timm.create_model('sl_pit', img_size=(32, 7))
    assert timm.create_model('plain_pit', img_size=2)(torch.zeros(1, 3, 2, 2)).shape == (1, 10)
