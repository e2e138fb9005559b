"""The compact transformers give the numbers of the authors' code, for every variant, size and class count."""
import pytest
import timm
import torch
from parity import authors_state, compact_forward, fill, images, load_fixtures, parse

import tinyvit_zoo
from tinyvit_zoo.layers import sine_table
from tinyvit_zoo.models.compact import checkpoint_filter_fn

PARAMETERS = {  # trainable, 10 classes, 32 px unless said; counted on the authors' models
    'cct_2_3x2': 283_723, 'cct_4_3x2': 482_123, 'cct_6_3x1': 3_233_803, 'cct_6_3x2': 3_326_923, 'cct_7_3x1': 3_760_139,
    'cct_7_3x2': 3_853_259, 'cvt_7_4': 3_716_619, 'vit_lite_7_4': 3_716_874, 'vit_lite': 3_716_874,
    'cct_7_3x1_sine': 3_694_603,
}


def load(name: str, state: dict, **kwargs: object) -> torch.nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


@pytest.mark.parametrize('case', load_fixtures('compact'), ids=lambda case: case['name'])
@torch.no_grad()
def test_fixture(case: dict) -> None:
    """The authors' own numbers; the plain definition in parity.py is held to them too."""
    name = case['name'].removesuffix('_32').removesuffix('_224').replace('_32_', '_').replace('vit_', 'vit_lite_')
    state = {key: fill(key, shape) for key, shape in case['state'].items()}
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load(name, state, img_size=case['input'][-1], num_classes=expected.shape[1])
    tolerance = 1e-6 if case['fixed'] else 1e-9
    x = images(case['input'], case['image_seed'])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == case['params']
    torch.testing.assert_close(model(x), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)
    if not case['fixed']:
        torch.testing.assert_close(compact_forward(x, state, parse(name)['heads']), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('pos_embed', ['learnable', 'sine', 'none'])
@pytest.mark.parametrize('name', tinyvit_zoo.list_models('c[cv]t*') + tinyvit_zoo.list_models('vit_lite*'))
@torch.no_grad()
def test_every_variant(name: str, pos_embed: str) -> None:
    """Numbers equal the plain definition, for each kind of positions, at an oblong size of our choice."""
    img = (64, 32) if '7x2' in name else (20, 28)
    state = authors_state(name, img, 3, 10)
    if pos_embed == 'none':
        del state['classifier.positional_emb']
    elif pos_embed == 'sine':
        state['classifier.positional_emb'] = sine_table(*state['classifier.positional_emb'].shape[1:]).double()
    without = {key: value for key, value in state.items() if pos_embed == 'learnable' or 'positional' not in key}
    model = load(name, without, img_size=img, num_classes=10, pos_embed=pos_embed)
    x = images([1, 3, *img])
    torch.testing.assert_close(model(x), compact_forward(x, state, parse(name)['heads']), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, img, chans, classes', [
    ('cct_2_3x2', (32, 32), 1, 0), ('cct_2_3x2', (17, 45), 4, 3), ('cct_7_3x1', (1, 1), 5, 7),
    ('cct_4_3x2', (28, 28), 1, 26),
    ('cvt_2_4', (33, 31), 3, 1000), ('vit_lite_2_4', (36, 20), 4, 2), ('vit_lite_7_16', (64, 16), 3, 5),
    ('cct_7_7x2', (50, 41), 3, 4), ('vit_lite_7_8', (8, 8), 5, 0),
])
@torch.no_grad()
def test_sizes_channels_classes(name: str, img: tuple[int, int], chans: int, classes: int) -> None:
    state = authors_state(name, img, chans, classes)
    model = load(name, state, img_size=img, in_chans=chans, num_classes=classes)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), compact_forward(x, state, parse(name)['heads']), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, count', PARAMETERS.items())
def test_parameter_count(name: str, count: int) -> None:
    model = timm.create_model(name, num_classes=10, device='meta')
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize('name, img, classes, count', [
    ('cct_7_7x2', 224, 102, 4_573_735), ('cct_14_7x2', 224, 1000, 22_367_273), ('cct_14_7x2', 384, 1000, 22_513_193)])
def test_parameter_count_large(name: str, img: int, classes: int, count: int) -> None:
    model = timm.create_model(name, num_classes=classes, img_size=img, device='meta')
    assert sum(p.numel() for p in model.parameters()) == count


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = timm.create_model('vit_lite_7_4')
    assert abs(model.pos_embed.std().item() - 0.2) < 0.01
    assert model.cls_token.abs().sum() == 0
    linear = model.blocks[3].linear1
    assert abs(linear.weight.std().item() - 0.02) < 0.001
    assert linear.bias.abs().sum() == 0
    fan_in = 3 * 4 * 4
    assert abs(model.tokenizer.convs[0].weight.std().item() - (2 / fan_in) ** 0.5) < 0.01


def test_authors_dropouts_are_the_defaults() -> None:
    model = timm.create_model('cct_7_3x1')
    rates = [getattr(block.drop_path1, 'drop_prob', 0.) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 6 for i in range(7)])
    assert {block.self_attn.attn_drop.p for block in model.blocks} == {0.1}
    assert {block.self_attn.proj_drop.p for block in model.blocks} == {0.}


def test_sine_is_a_buffer_and_the_formula() -> None:
    model = timm.create_model('cct_7_3x1_sine')
    assert 'pos_embed' not in dict(model.named_parameters())
    table = model.pos_embed[0]
    assert table[5, 6].item() == pytest.approx(torch.sin(torch.tensor(5 / 10000 ** (6 / 256))).item(), abs=1e-6)
    assert table[5, 7].item() == pytest.approx(torch.cos(torch.tensor(5 / 10000 ** (6 / 256))).item(), abs=1e-6)


def test_weights_can_be_initialised_after_to_empty() -> None:
    model = timm.create_model('cct_7_3x1_sine', device='meta').to_empty(device='cpu')
    model.init_weights()
    torch.testing.assert_close(model.pos_embed, sine_table(256, 256))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize('kwargs, words', [
    (dict(pos_embed='sin'), "'learnable', 'sine' or 'none'"),
    (dict(global_pool='token'), "'seq'"),
])
def test_bad_option(kwargs: dict, words: str) -> None:
    with pytest.raises(tinyvit_zoo.ZooError, match=words):
        timm.create_model('cct_2_3x2', **kwargs)


def test_a_size_without_tokens_says_which_sizes_have_some() -> None:
    with pytest.raises(tinyvit_zoo.ZooError, match='at least 16 x 16'):
        timm.create_model('vit_lite_7_16', img_size=12)


def test_an_image_of_another_size_says_what_to_do() -> None:
    with pytest.raises(AssertionError, match='takes 32 x 32 pixels, not 40 x 32: create it with img_size'):
        timm.create_model('cvt_2_4')(torch.zeros(1, 3, 40, 32))
