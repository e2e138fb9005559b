"""SPT/LSA's Swin gives the numbers of the authors' code, for every combination, size and class count."""
import copy
import itertools
import pickle
from typing import Any

import pytest
import timm
import torch
from parity import fill, images, load_fixtures
from parity_sl_swin import swin_forward, swin_shapes
from torch import Tensor, nn

import tinyvit_zoo
from tinyvit_zoo.kernels import window_attention
from tinyvit_zoo.kernels.memory import slice_length
from tinyvit_zoo.layers import (
    ShiftedMerging,
    ShiftedPatchTokenization,
    WindowAttention,
    attend_in_windows,
    window_mask,
    windows,
)
from tinyvit_zoo.measure import counting
from tinyvit_zoo.models.sl_swin import checkpoint_filter_fn

COMBINATIONS = list(itertools.product((False, True), repeat=2))
PARAMETERS = {  # trainable; counted on the authors' models
    ('plain_swin', 10): 7_073_188, ('sl_swin', 10): 8_562_166, ('plain_swin', 100): 7_107_838,
    ('sl_swin', 100): 8_596_816, ('plain_swin_64', 200): 7_149_794, ('sl_swin_64', 200): 8_652_956,
}


def authors_state(
        img: tuple[int, int], chans: int, classes: int, patch: int, spt: bool, lsa: bool, masks: bool = True,
) -> dict[str, Tensor]:
    shapes = swin_shapes(img, chans, classes, patch, spt, lsa, masks)
    return {name: fill(name, shape) for name, shape in shapes.items()}


def load(name: str, state: dict[str, Tensor], **kwargs: Any) -> nn.Module:
    model = timm.create_model(name, **kwargs).double().eval()
    model.load_state_dict(checkpoint_filter_fn(state, model))
    return model


@pytest.mark.parametrize('case', [c for c in load_fixtures('spt_lsa') if 'swin' in c['name']], ids=lambda c: c['name'])
@torch.no_grad()
def test_fixture(case: dict) -> None:
    """The authors' own numbers, with the masks that the fixture draws; the plain definition is held to them too."""
    state = {key: fill(key, shape) for key, shape in case['state'].items()}
    assert case['state'] == swin_shapes((32, 32), 3, 10, 2, True, True)
    expected = torch.tensor(case['logits'], dtype=torch.float64)
    model = load('sl_swin', state)
    x = images(case['input'], case['image_seed'])
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == case['params']
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(model.float()(x.float()), expected.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(swin_forward(x, state, 2), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('masks', [False, True], ids=['shift masks', 'drawn masks'])
@pytest.mark.parametrize('spt, lsa', COMBINATIONS)
@pytest.mark.parametrize('name, size, classes', [('sl_swin', 32, 10), ('plain_swin_64', 64, 200)])
@torch.no_grad()
def test_every_combination(name: str, size: int, classes: int, spt: bool, lsa: bool, masks: bool) -> None:
    patch = 4 if size == 64 else 2
    state = authors_state((size, size), 3, classes, patch, spt, lsa, masks)
    model = load(name, state, num_classes=classes, spt=spt, lsa=lsa)
    x = images([1, 3, size, size])
    torch.testing.assert_close(model(x), swin_forward(x, state, patch), rtol=0, atol=1e-9)


@pytest.mark.parametrize('name, img, chans, classes, spt, lsa', [
    ('sl_swin', (64, 64), 3, 100, True, True), ('sl_swin', (20, 44), 1, 0, True, True),
    ('plain_swin', (16, 16), 5, 2, False, True), ('sl_swin', (8, 9), 2, 100, True, True),
    ('sl_swin', (41, 27), 4, 10, False, True), ('plain_swin', (36, 30), 3, 200, True, False),
    ('sl_swin_64', (32, 32), 3, 10, True, True), ('plain_swin_64', (16, 50), 1, 2, False, False),
])
@torch.no_grad()
def test_sizes_channels_classes(
        name: str, img: tuple[int, int], chans: int, classes: int, spt: bool, lsa: bool) -> None:
    """Sizes of which the authors' code takes some: maps that are no multiple of a window, or smaller than one."""
    patch = 4 if name.endswith('_64') else 2
    state = authors_state(img, chans, classes, patch, spt, lsa, masks=False)
    model = load(name, state, img_size=img, in_chans=chans, num_classes=classes, spt=spt, lsa=lsa)
    x = images([2, chans, *img])
    expected = swin_forward(x, state, patch)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)
    for attn in [m for m in model.modules() if isinstance(m, WindowAttention)]:
        attn.fused_attn = False
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('key, count', PARAMETERS.items())
def test_parameter_count(key: tuple[str, int], count: int) -> None:
    model = timm.create_model(key[0], num_classes=key[1], device='meta')
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize('spt, count', [(True, 8_562_076), (False, 7_073_278)])
def test_parameter_count_of_one_alone(spt: bool, count: int) -> None:
    model = timm.create_model('sl_swin', num_classes=10, spt=spt, lsa=not spt, device='meta')
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('name, classes, millions', [
    ('plain_swin', 10, 240.95), ('sl_swin', 10, 279.88), ('plain_swin_64', 200, 241.90), ('sl_swin_64', 200, 284.37)])
def test_multiplications(name: str, classes: int, millions: float, device: str) -> None:
    model = timm.create_model(name, num_classes=classes, device=device)
    assert counting.count(model).macs / 1e6 == pytest.approx(millions, abs=0.01)


# -- the windows -------------------------------------------------------------------------------------------------------
@pytest.fixture
def by_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size."""
    monkeypatch.setattr(windows, '_OPERATOR_FROM', 0)


def attend(qkv: Tensor, shift: int, fused: bool, lsa: bool = True) -> Tensor:
    heads = qkv.shape[4]
    table = torch.randn(49, heads, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(qkv.dtype)
    temperature = torch.linspace(-0.5, 0.5, heads, dtype=qkv.dtype) if lsa else None
    return attend_in_windows(qkv, temperature, table, None, 4, shift, fused)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('height, width, shift', [(8, 8, 2), (8, 8, 0), (5, 11, 2), (6, 9, 2), (2, 2, 2), (1, 1, 0)])
@pytest.mark.parametrize('fused', [True, False])
@pytest.mark.usefixtures('by_operator')
def test_no_token_attends_to_itself(height: int, width: int, shift: int, fused: bool, dtype: torch.dtype) -> None:
    """A token's output does not move with its value, unless it is alone in its window; and nothing is NaN."""
    qkv = torch.randn(1, height, width, 3, 2, 4, dtype=dtype, requires_grad=True)
    out = attend(qkv, shift, fused)
    lone = height * width == 1
    for y, z in {(0, 0), (height - 1, width - 1), (height // 2, width // 3), (min(1, height - 1), 0)}:
        grad, = torch.autograd.grad(out[0, y, z].float().sum(), qkv, retain_graph=True)
        assert torch.isfinite(out).all() and torch.isfinite(grad).all()
        assert grad[0, :, :, 2].abs().sum() > 0
        own = grad[0, y, z, 2]
        torch.testing.assert_close(own, torch.full_like(own, float(lone)), rtol=0, atol=0)


@pytest.mark.usefixtures('by_operator')
def test_a_map_s_edges_do_not_meet() -> None:
    """Tokens reach exactly those of their window that the shift has not wrapped around."""
    qkv = torch.randn(1, 8, 8, 3, 1, 4, dtype=torch.float64, requires_grad=True)
    for fused in (True, False):
        out = attend(qkv, 2, fused, lsa=False)
        grad, = torch.autograd.grad(out[0, 0, 0].sum(), qkv)
        reached = grad[0, :, :, 2].abs().sum((-1, -2)) > 0
        assert reached[:2, :2].all() and reached.sum() == 4


@pytest.mark.parametrize('height, width, shift', [(8, 12, 2), (8, 8, 0), (7, 5, 2), (2, 3, 0), (1, 1, 0)])
@pytest.mark.parametrize('lsa', [True, False])
@pytest.mark.usefixtures('by_operator')
def test_the_operator_has_the_plain_formula_s_gradients(
        height: int, width: int, shift: int, lsa: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_attention, '_CHUNK_BYTES', 1)  # one image at a time
    grads = []
    for fused in (True, False):
        torch.manual_seed(2)
        module = WindowAttention(12, 3, 4, shift, lsa=lsa).double()
        nn.init.normal_(module.relative_position_bias_table)
        module.fused_attn = fused
        x = torch.randn(3, height, width, 12, dtype=torch.float64, requires_grad=True)
        out = module(x)
        (out * torch.randn_like(out)).sum().backward()
        grads.append([out, x.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize('batch, by_operator', [(18, False), (19, True)])
def test_small_maps_go_by_the_plain_formula(batch: int, by_operator: bool) -> None:
    """The operator begins where a batch's queries, keys and values are 2 ** 20 numbers or more."""
    module = WindowAttention(96, 3, 4, 2)
    with torch.profiler.profile() as seen:
        module(torch.randn(batch, 14, 14, 96))
    assert any('window_attention' in event.key for event in seen.key_averages()) == by_operator


def test_the_operator_keeps_its_contract() -> None:
    qkv = torch.randn(2, 25, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    bias = (torch.randn(2, 16, 16, dtype=torch.float64) + window_mask(qkv, 5, 5, 4, 2, True)[:, None]).detach()
    args = (qkv, torch.rand(2, dtype=torch.float64, requires_grad=True), bias.requires_grad_(),
            *windows.window_order(qkv, 5, 5, 4, 2))
    torch.library.opcheck(torch.ops.tinyvit_zoo.window_attention, args)
    assert torch.autograd.gradcheck(torch.ops.tinyvit_zoo.window_attention, args, fast_mode=True)


def test_a_mask_is_made_once_and_serves_training_after_inference() -> None:
    with torch.inference_mode():
        first = window_mask(torch.zeros(1), 8, 8, 4, 2, True)
    assert window_mask(torch.ones(1), 8, 8, 4, 2, True) is first and not first.is_inference()
    assert window_mask(torch.zeros(1, dtype=torch.bfloat16), 8, 8, 4, 2, True).dtype == torch.bfloat16


# -- the merging -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('height, width', [(8, 8), (7, 10), (2, 3), (5, 5)])
def test_the_merging_s_operator_has_the_definition_s_gradients(height: int, width: int) -> None:
    module = ShiftedMerging(6).double()
    for p in module.parameters():
        nn.init.normal_(p)
    x = torch.randn(3, height, width, 6, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, height // 2, width // 2, 12, dtype=torch.float64)
    by_definition = ShiftedPatchTokenization.forward(module, x.permute(0, 3, 1, 2)).view_as(grad)
    results = []
    for out in (module(x), by_definition):
        results.append([out, *torch.autograd.grad(out, [x, *module.parameters()], grad)])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_the_merging_s_operator_keeps_its_contract() -> None:
    args = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 6, 3), (5, 3, 4, 4), (5,))]
    torch.library.opcheck(torch.ops.tinyvit_zoo.shifted_merging, (*args, 1e-5))
    assert torch.autograd.gradcheck(lambda *a: torch.ops.tinyvit_zoo.shifted_merging(*a, 1e-5)[0], args)


# -- the model ---------------------------------------------------------------------------------------------------------
def test_initialisation_and_drop_path_are_the_authors() -> None:
    model = timm.create_model('sl_swin')
    assert abs(model.pos_embed.std().item() - 0.02) < 1e-3
    block = model.layers[1].blocks[3]
    assert abs(block.attn.relative_position_bias_table.std().item() - 0.02) < 3e-3
    assert (block.attn.temperature == 32 ** -0.5).all()
    assert block.mlp.fc1.weight.abs().max().item() == pytest.approx(192 ** -0.5, rel=1e-2)  # PyTorch's: uniform
    rates = [getattr(b.drop_path1, 'drop_prob', 0.) for stage in model.layers for b in stage.blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_what_is_not_decayed() -> None:
    model = timm.create_model('sl_swin')
    expected = {'pos_embed', *(f'layers.{i}.blocks.{j}.attn.{name}' for i, depth in enumerate((2, 6, 4))
                               for j in range(depth) for name in ('temperature', 'relative_position_bias_table'))}
    assert model.no_weight_decay() == expected


def test_weights_can_be_initialised_after_to_empty() -> None:
    model = timm.create_model('sl_swin', device='meta').to_empty(device='cpu')
    model.init_weights()
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 32, 32))).all()
    assert (model.layers[0].blocks[1].attn.temperature == 32 ** -0.5).all()


@torch.no_grad()
def test_stages_are_features() -> None:
    model = timm.create_model('sl_swin', pos_embed='none').eval()
    x = torch.randn(2, 3, 40, 24)
    assert [(f['num_chs'], f['reduction']) for f in model.feature_info] == [(96, 2), (192, 4), (384, 8)]
    final, maps = model.forward_intermediates(x, norm=True, output_fmt='NHWC')
    assert [tuple(m.shape[1:]) for m in maps] == [(20, 12, 96), (10, 6, 192), (5, 3, 384)]
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(maps[-1], final)
    early = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(early[0].permute(0, 2, 3, 1), maps[0])
    assert model.prune_intermediate_layers([1]) == [1]
    assert model.forward_features(x).shape == (2, 10, 6, 192) and model.num_features == 192
    torch.testing.assert_close(model.forward_features(x), maps[1])


@pytest.mark.parametrize('pool, shape', [
    ('', (2, 4, 4, 384)), ('avg', (2, 384)), ('max', (2, 384)), ('avgmax', (2, 384)), ('seq', (2, 384))])
@torch.no_grad()
def test_read_outs(pool: str, shape: tuple[int, ...]) -> None:
    model = timm.create_model('plain_swin', num_classes=0, global_pool=pool).eval()
    x = torch.randn(2, 3, 32, 32)
    assert model(x).shape == shape
    if pool == 'avgmax':
        maps = model.forward_features(x).flatten(1, 2)
        torch.testing.assert_close(model(x), (maps.mean(1) + maps.amax(1)) / 2)


@pytest.mark.parametrize('kwargs, words', [
    (dict(pos_embed='sine'), "'learnable' or 'none'"), (dict(global_pool='token'), "'seq'"),
    (dict(img_size=7), 'at least 8 x 8'), (dict(window_size=64), 'at most the 16 tokens')])
def test_bad_option(kwargs: dict, words: str) -> None:
    with pytest.raises(tinyvit_zoo.ZooError, match=words):
        timm.create_model('sl_swin', **kwargs)


def test_too_small_a_size_changes_nothing() -> None:
    model = timm.create_model('sl_swin', pos_embed='none')
    with pytest.raises(tinyvit_zoo.ZooError, match='leaves no token'):
        model.set_input_size(6)
    with pytest.raises(AssertionError, match='8 pixels'):
        model(torch.zeros(1, 3, 32, 6))
    assert model.img_size == (32, 32)


SHALLOW = dict(depths=(1, 2, 1))


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    model = timm.create_model('sl_swin', **SHALLOW).train()
    x, grads = torch.randn(2, 3, 32, 32), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)  # the same drop paths
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@torch.no_grad()
def test_set_input_size_as_if_built_so() -> None:
    model, x = timm.create_model('sl_swin', **SHALLOW).eval(), torch.randn(2, 3, 48, 28)
    model.set_input_size((48, 28))
    built = timm.create_model('sl_swin', img_size=(48, 28), **SHALLOW).eval()
    built.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), built(x))


@torch.no_grad()
def test_copies_and_pickles() -> None:
    model, x = timm.create_model('sl_swin', **SHALLOW).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x))


@torch.no_grad()
def test_slices_are_invisible() -> None:
    model, x = timm.create_model('sl_swin', **SHALLOW).eval(), torch.randn(70, 3, 32, 32)
    assert 0 < slice_length(model, x, model._largest_activation()) < len(x)
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x)))


def test_bf16_autocast() -> None:
    model, x = timm.create_model('sl_swin', **SHALLOW), torch.randn(2, 3, 36, 36)
    model.set_input_size(36)
    with torch.autocast('cpu', torch.bfloat16):
        model(x).float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        half = model.eval()(x).float()
    torch.testing.assert_close(half, model(x).detach(), rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_compiles_to_one_graph() -> None:
    """At a size with windows that are not full, shifted ones too."""
    model = timm.create_model('sl_swin', img_size=20, **SHALLOW)
    compiled, x = torch.compile(model, fullgraph=True, backend='eager'), torch.randn(2, 3, 20, 20)
    compiled(x).sum().backward()  # with drop path
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('spt', [True, False])
def test_exports_with_a_dynamic_batch(spt: bool) -> None:
    model = timm.create_model('sl_swin', spt=spt, img_size=20, **SHALLOW).eval()
    x = torch.randn(5, 3, 20, 20)
    program = torch.export.export(model, (x[:3],), dynamic_shapes=({0: torch.export.Dim('batch')},))
    assert 'tinyvit_zoo' not in program.graph_module.code  # torch's own operators, for those who have not ours
    torch.testing.assert_close(program.module()(x), model(x))


# -- loading -----------------------------------------------------------------------------------------------------------
def shift_masks(state: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    """The masks as the authors' code computes them."""
    masks = {}
    for name, drawn in state.items():
        if name.endswith('attn_mask'):
            side = size // 2 >> int(name.split('.')[1])
            mask = window_mask(drawn, side, side, 4, 2, False)
            assert mask.shape == drawn.shape
            masks[name] = torch.where(mask < 0, -100., 0.).to(drawn.dtype)
    return masks


@torch.no_grad()
def test_the_masks_of_a_checkpoint() -> None:
    """Those of a shift are not kept and bind nothing; others are, are saved, and go with another size."""
    drawn = authors_state((32, 32), 3, 10, 2, True, True)
    without = {name: tensor for name, tensor in drawn.items() if not name.endswith('attn_mask')}
    usual = {**drawn, **shift_masks(drawn, 32), 'layers.0.blocks.0.attn.relative_position_index': torch.zeros(16, 16)}
    model, x = load('sl_swin', usual), images([1, 3, 32, 32])
    assert not any('mask' in name or 'index' in name for name in model.state_dict())
    torch.testing.assert_close(model(x), load('sl_swin', without)(x))
    assert load('sl_swin', usual, img_size=48)(images([1, 3, 48, 48])).isfinite().all()

    odd = load('sl_swin', drawn)
    assert sum('attn_mask' in name for name in odd.state_dict()) == 4
    torch.testing.assert_close(load('sl_swin', odd.state_dict())(x), odd(x), rtol=0, atol=0)
    assert (odd(x) - model(x)).abs().max() > 1e-3
    odd.load_state_dict(checkpoint_filter_fn(usual, odd))
    torch.testing.assert_close(odd(x), model(x))
    again = load('sl_swin', drawn)
    again.set_input_size(24)
    assert not any('attn_mask' in name for name in again.state_dict())


def test_masks_of_another_size_are_refused() -> None:
    drawn = authors_state((32, 32), 3, 10, 2, True, True)
    cfg = dict(state_dict=drawn, input_size=(3, 32, 32), num_classes=10)
    with pytest.raises(tinyvit_zoo.ZooError, match='attn_mask is not part of it'):
        timm.create_model('sl_swin', pretrained=True, pretrained_cfg_overlay=cfg, img_size=48)


@torch.no_grad()
def test_smaller_windows_of_a_checkpoint() -> None:
    """At 16 pixels the authors' last stage has windows of 2x2: their table is the middle of ours."""
    state = authors_state((16, 16), 3, 10, 2, True, True, masks=False)
    tables = [name for name in state if name.startswith('layers.2') and name.endswith('bias_table')]
    small = {name: state[name].unflatten(0, (7, 7))[2:5, 2:5].flatten(0, 1) for name in tables}
    model, x = load('sl_swin', {**state, **small}, img_size=16), images([2, 3, 16, 16])
    torch.testing.assert_close(model(x), load('sl_swin', state, img_size=16)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('spt', [True, False])
@torch.no_grad()
def test_a_pretrained_model_takes_grey_images_and_other_sizes(spt: bool) -> None:
    state = {name: tensor.float() for name, tensor in authors_state((32, 32), 3, 10, 2, spt, True, masks=False).items()}
    cfg = dict(state_dict=state, input_size=(3, 32, 32), num_classes=10)
    args = dict(spt=spt, pretrained=True, pretrained_cfg_overlay=cfg)
    grey, colour = (timm.create_model('sl_swin', in_chans=n, **args).eval() for n in (1, 3))
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)
    wide = timm.create_model('sl_swin', img_size=(32, 48), **args)
    assert wide.pos_embed.shape == (1, 16 * 24, 96)
    with pytest.raises(tinyvit_zoo.ZooError, match=r'temperature is not part of it'):
        timm.create_model('sl_swin', lsa=False, **args)
