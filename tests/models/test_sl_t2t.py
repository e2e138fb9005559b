"""T2T-ViT gives the numbers of the authors' code for every combination of its two add-ons, at any size."""
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from parity import fill, images, load_fixtures
from torch import Tensor

import tinyvit_zoo
from tinyvit_zoo.layers import LocalityAttention, sine_table
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models.sl_t2t import checkpoint_filter_fn

NAMES = ['plain_t2t', 'sl_t2t', 'plain_t2t_64', 'sl_t2t_64']
COMBINATIONS = [(spt, lsa) for spt in (False, True) for lsa in (False, True)]
UNUSED = 1152  # counted in the figures below, not owned by ours
PARAMETERS = {  # (px, classes): by spt and lsa, in the order of COMBINATIONS
    (32, 10): (6_486_080, 6_486_129, 6_507_032, 6_507_081),
    (32, 100): (6_509_210, 6_509_259, 6_530_162, 6_530_211),
    (64, 200): (6_659_262, 6_659_312, 6_680_214, 6_680_264),
}
MACS = {'plain_t2t': 457.20, 'sl_t2t': 462.51, 'plain_t2t_64': 636.35, 'sl_t2t_64': 657.58}


# -- the definition written out plainly, in the authors' tensor names --------------------------------------------------
def shapes(unfolds: int, chans: int, classes: int, spt: bool, lsa: bool, depth: int = 12) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {'cls_token': [1, 1, 256]}
    width = 5 * chans if spt else chans
    for i in range(1, unfolds):
        block = _block(9 * width, 64, 64, 1)
        found.update({f'tokens_to_token.attention{i}.{name}': shape for name, shape in block.items()
                      if lsa or name != 'attn.scale'})
        width = 64
    found.update({'tokens_to_token.norm.weight': [576], 'tokens_to_token.norm.bias': [576],
                  'tokens_to_token.project.weight': [256, 9 * width], 'tokens_to_token.project.bias': [256]})
    for i in range(depth):
        found.update({f'blocks.{i}.{name}': shape for name, shape in _block(256, 256, 512, 4).items()
                      if lsa or name != 'attn.scale'})
    found.update({'norm.weight': [256], 'norm.bias': [256]})
    if classes:
        found.update({'head.weight': [classes, 256], 'head.bias': [classes]})
    return found


def _block(width: int, dim: int, hidden: int, heads: int) -> dict[str, list[int]]:
    return {'norm1.weight': [width], 'norm1.bias': [width], 'attn.scale': [heads], 'attn.qkv.weight': [3 * dim, width],
            'attn.proj.weight': [dim, dim], 'attn.proj.bias': [dim], 'norm2.weight': [dim], 'norm2.bias': [dim],
            'mlp.fc1.weight': [hidden, dim], 'mlp.fc1.bias': [hidden],
            'mlp.fc2.weight': [dim, hidden], 'mlp.fc2.bias': [dim]}


def sinusoids(length: int, dim: int) -> Tensor:
    table = np.array([[p / 10000 ** (2 * (i // 2) / dim) for i in range(dim)] for p in range(length)])
    table[:, 0::2], table[:, 1::2] = np.sin(table[:, 0::2]), np.cos(table[:, 1::2])
    return torch.from_numpy(table).float().double()  # the authors hold it in float32


def unfold(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 9C, h, w]: 3x3 neighbourhoods at every second pixel, zeros around."""
    height, width = x.shape[2:]
    wide = F.pad(x, (1, 2, 1, 2))
    parts = [wide[:, :, i:i + height:2, j:j + width:2] for i in range(3) for j in range(3)]
    return torch.stack(parts, 2).flatten(1, 2)


def forward(x: Tensor, s: dict[str, Tensor], spt: bool) -> Tensor:
    """Logits, or the features of the class token."""
    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * s[f'{name}.weight'] + s[f'{name}.bias']

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ s[f'{name}.weight'].T + s.get(f'{name}.bias', 0)

    def attend(x: Tensor, name: str, heads: int, scale: float) -> tuple[Tensor, Tensor]:
        q, k, v = linear(x, f'{name}.qkv').unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-1, -2)
        if f'{name}.scale' in s:
            logits = logits * s[f'{name}.scale'][:, None, None]
            if logits.shape[-1] > 1:
                logits = logits.masked_fill(torch.eye(logits.shape[-1], dtype=torch.bool), -torch.inf)
        else:
            logits = logits * scale
        out = logits.softmax(-1) @ v
        return linear(out.transpose(1, 2).flatten(2), f'{name}.proj'), v.transpose(1, 2).flatten(2)

    def mlp(x: Tensor, name: str) -> Tensor:
        return linear(F.gelu(linear(norm(x, f'{name}.norm2'), f'{name}.mlp.fc1')), f'{name}.mlp.fc2')

    if spt:
        wide = F.pad(x, (1, 1, 1, 1))
        height, width = x.shape[2:]
        x = torch.cat([x] + [wide[:, :, i:i + height, j:j + width] for i in (0, 2) for j in (0, 2)], 1)
    for i in range(1, 1 + sum(name.endswith('norm1.weight') for name in s if name.startswith('tokens'))):
        name = f'tokens_to_token.attention{i}'
        x = unfold(x)
        grid, x = x.shape[2:], x.flatten(2).transpose(1, 2)
        out, values = attend(norm(x, f'{name}.norm1'), f'{name}.attn', 1, x.shape[-1] ** -0.5)
        x = values + out
        x = (x + mlp(x, name)).transpose(1, 2).unflatten(2, grid)
    x = linear(unfold(x).flatten(2).transpose(1, 2), 'tokens_to_token.project')
    x = torch.cat([s['cls_token'].expand(len(x), -1, -1), x], 1)
    x = x + sinusoids(*x.shape[1:])
    for i in range(sum(name.startswith('blocks') and name.endswith('norm1.weight') for name in s)):
        y = norm(x, f'blocks.{i}.norm1')
        x = x + y + attend(y, f'blocks.{i}.attn', 4, 64 ** -0.5)[0]
        x = x + mlp(x, f'blocks.{i}')
    x = norm(x[:, 0], 'norm')
    return linear(x, 'head') if 'head.weight' in s else x


# -- the numbers -------------------------------------------------------------------------------------------------------
def load(name: str, state: dict[str, Tensor], **kwargs: object) -> torch.nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


@torch.no_grad()
def test_fixture() -> None:
    """The authors' own numbers; the plain definition above is held to them too."""
    case = next(case for case in load_fixtures('spt_lsa') if case['name'] == 'sl_t2t_32_c10')
    state = {key: fill(key, shape) for key, shape in case['state'].items()}
    assert case['state'] == shapes(2, 3, 10, True, True)
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load('sl_t2t', state)
    x = images(case['input'], case['image_seed'])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(forward(x, state, True), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)
    with_table = load('sl_t2t', {**state, 'pos_embed': sinusoids(65, 256).float()})
    torch.testing.assert_close(with_table(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('spt, lsa', COMBINATIONS)
@pytest.mark.parametrize('name, px, classes', [('sl_t2t', 32, 100), ('plain_t2t', 32, 2), ('sl_t2t_64', 64, 200)])
@torch.no_grad()
def test_every_combination(name: str, px: int, classes: int, spt: bool, lsa: bool) -> None:
    unfolds = 3 if name.endswith('_64') else 2
    state = {key: fill(key, shape) for key, shape in shapes(unfolds, 3, classes, spt, lsa).items()}
    model = load(name, state, num_classes=classes, spt=spt, lsa=lsa)
    x = images([2, 3, px, px])
    torch.testing.assert_close(model(x), forward(x, state, spt), rtol=0, atol=1e-9)


@pytest.mark.parametrize('spt, lsa', COMBINATIONS)
@pytest.mark.parametrize('unfolds, img, chans, classes, depth', [
    (2, (45, 18), 1, 0, 2), (3, (30, 41), 4, 3, 1), (2, (1, 1), 2, 2, 1), (3, (9, 64), 5, 7, 1), (4, (33, 16), 3, 4, 1),
    (1, (7, 5), 3, 2, 1)])
@torch.no_grad()
def test_sizes_channels_classes(
        unfolds: int, img: tuple[int, int], chans: int, classes: int, depth: int, spt: bool, lsa: bool) -> None:
    state = {key: fill(key, shape) for key, shape in shapes(unfolds, chans, classes, spt, lsa, depth).items()}
    model = load('sl_t2t', state, img_size=img, in_chans=chans, num_classes=classes, num_unfolds=unfolds, depth=depth,
                 spt=spt, lsa=lsa)
    x = images([2, chans, *img])
    torch.testing.assert_close(model(x), forward(x, state, spt), rtol=0, atol=1e-9)
    assert model.grid_size == tuple(math.ceil(side / 2 ** unfolds) for side in img)


@torch.no_grad()
def test_a_photograph_is_taken_too() -> None:
    model = timm.create_model('sl_t2t_64', img_size=(224, 96), depth=1, num_unfolds=4).eval()
    features = model.forward_features(torch.randn(1, 3, 224, 96))
    assert model.grid_size == (14, 6) and features.shape == (1, 85, 256)


@pytest.mark.parametrize('px, classes', PARAMETERS)
def test_parameter_count(px: int, classes: int) -> None:
    name = 'sl_t2t' if px == 32 else 'sl_t2t_64'
    for (spt, lsa), count in zip(COMBINATIONS, PARAMETERS[px, classes], strict=True):
        model = timm.create_model(name, num_classes=classes, spt=spt, lsa=lsa, device='meta')
        assert sum(p.numel() for p in model.parameters()) == count - UNUSED


@pytest.mark.parametrize('name', NAMES)
def test_macs(name: str) -> None:
    assert counting.count(timm.create_model(name, device='meta')).macs / 1e6 == pytest.approx(MACS[name], abs=0.005)


# -- the mask ----------------------------------------------------------------------------------------------------------
def weights_to_itself(attn: LocalityAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """How what the attention makes of the first token changes with the values of itself, and of another token."""
    qkv = attn.project(x)
    values = torch.autograd.grad(attn.attend(qkv)[:, 0].float().square().sum(), qkv)[0][:, :, 2]
    return values[:, 0], values[:, 1]


@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_token_attends_to_itself(dtype: torch.dtype, fused: bool) -> None:
    timm.layers.set_fused_attn(fused)
    try:
        model = timm.create_model('sl_t2t_64', depth=1, img_size=32).to(dtype)
    finally:
        timm.layers.set_fused_attn(True)
    for attn, width in [*((step.attn, step.norm1.normalized_shape[0]) for step in model.tokenizer.steps),
                        (model.blocks[0].attn, 256)]:
        itself, other = weights_to_itself(attn, torch.randn(2, 17, width, dtype=dtype))
        assert (itself == 0).all() and (other != 0).any()
    model(torch.randn(2, 3, 32, 32, dtype=dtype)).float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_without_the_mask_a_token_attends_to_itself() -> None:
    model = timm.create_model('sl_t2t', depth=1, lsa=False)
    assert (weights_to_itself(model.blocks[0].attn, torch.randn(2, 17, 256))[0] != 0).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_lone_pixel_gives_numbers(dtype: torch.dtype) -> None:
    model = timm.create_model('sl_t2t', img_size=1, depth=1, dtype=dtype)
    logits = model(torch.randn(2, 3, 1, 1, dtype=dtype))
    logits.float().sum().backward()
    assert torch.isfinite(logits).all() and all(torch.isfinite(p.grad).all() for p in model.parameters())


# -- the rest ----------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_unfused_attention_gives_the_same_numbers() -> None:
    for name in ('plain_t2t', 'sl_t2t'):
        model = timm.create_model(name, depth=2).eval()
        timm.layers.set_fused_attn(False)
        try:
            plain = timm.create_model(name, depth=2).eval()
        finally:
            timm.layers.set_fused_attn(True)
        plain.load_state_dict(model.state_dict())
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(plain(x), model(x))


def test_initialisation_and_drop_path() -> None:
    model = timm.create_model('sl_t2t_64')
    assert [step.attn.temperature.item() for step in model.tokenizer.steps] == pytest.approx([135 ** -0.5, 576 ** -0.5])
    assert {block.attn.temperature[0].item() for block in model.blocks} == {0.125}
    for module in (model.blocks[3].mlp.fc1, model.tokenizer.proj, model.tokenizer.steps[1].attn.qkv):
        assert abs(module.weight.std().item() - 0.02) < 0.001
    assert model.blocks[3].mlp.fc1.bias.abs().sum() == 0
    rates = [getattr(block.drop_path1, 'drop_prob', 0.) for block in model.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() == {'cls_token'} | {name for name in names if name.endswith('temperature')}


def test_the_sine_table_is_a_buffer_that_follows_the_size() -> None:
    model = timm.create_model('sl_t2t', device='meta').to_empty(device='cpu')
    model.init_weights()
    torch.testing.assert_close(model.pos_embed[0].double(), sinusoids(65, 256), rtol=0, atol=1e-7)
    assert 'pos_embed' not in dict(model.named_parameters())
    model.set_input_size((40, 20))
    torch.testing.assert_close(model.pos_embed, sine_table(51, 256))
    built = timm.create_model('sl_t2t', img_size=(40, 20))
    built.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 40, 20)
    torch.testing.assert_close(model.eval()(x), built.eval()(x))


def create_pretrained(state: dict[str, Tensor], **kwargs: object) -> torch.nn.Module:
    overlay = dict(state_dict=state, input_size=(3, 32, 32), num_classes=10)
    return timm.create_model('sl_t2t', pretrained=True, depth=1, pretrained_cfg_overlay=overlay, **kwargs)


def test_pretrained_weights_serve_another_size() -> None:
    model = timm.create_model('sl_t2t', depth=1).eval()
    loaded = create_pretrained(model.state_dict(), img_size=(48, 32)).eval()
    model.set_input_size((48, 32))
    x = torch.randn(2, 3, 48, 32)
    torch.testing.assert_close(loaded(x), model(x))


@torch.no_grad()
def test_an_authors_file_loads_as_pretrained() -> None:
    """Wrapped, with the sine table and the unused norm in it."""
    state = {key: fill(key, shape) for key, shape in shapes(2, 3, 10, True, True, 1).items()}
    model = create_pretrained({'model': {**state, 'pos_embed': sinusoids(65, 256)}}).double().eval()
    x = images([2, 3, 32, 32])
    torch.testing.assert_close(model(x), forward(x, state, True), rtol=0, atol=1e-5)  # read as float32


def test_pretrained_weights_for_other_channels_are_refused_in_one_line() -> None:
    state = timm.create_model('sl_t2t', depth=1).state_dict()
    with pytest.raises(tinyvit_zoo.ZooError, match=r'in_chans=3 and convert the images') as e:
        create_pretrained(state, in_chans=1)
    assert r'\n' not in str(e.value)
