"""Shifted patches and locality attention, as layers."""
import logging
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.kernels import attention, operator
from tinyvit_zoo.layers import (
    LocalityAttention,
    LocalityBlock,
    PatchTokenization,
    ShiftedPatchTokenization,
    adapt_patch_channels,
    attention as layers,
    cut_patches,
    diagonal_mask,
    shift_diagonally,
)
from tinyvit_zoo.models._build import adapt_linear_stem, build_model

# -- shifted patches ---------------------------------------------------------------------------------------------------


def test_shifts_of_an_image_made_by_hand() -> None:
    """Order: in place, right-down, left-down, right-up, left-up; zero comes in."""
    x = torch.tensor([[1, 2, 3], [4, 5, 6]]).view(1, 1, 2, 3)
    assert shift_diagonally(x, 1)[0].tolist() == [
        [[1, 2, 3], [4, 5, 6]],
        [[0, 0, 0], [0, 1, 2]],
        [[0, 0, 0], [2, 3, 0]],
        [[0, 4, 5], [0, 0, 0]],
        [[5, 6, 0], [0, 0, 0]]]


def test_copies_keep_their_channels_together() -> None:
    x = torch.arange(2 * 3 * 4 * 5.).view(2, 3, 4, 5)
    shifted = shift_diagonally(x, 2)
    assert shifted.shape == (2, 15, 4, 5) and torch.equal(shifted[:, :3], x)
    assert torch.equal(shifted[:, 3:6, 2:, 2:], x[:, :, :2, :3])
    assert torch.equal(shifted[:, 12:, :2, :3], x[:, :, 2:, 2:])


def test_a_shift_beyond_the_image_leaves_nothing() -> None:
    assert shift_diagonally(torch.ones(1, 1, 3, 2), 4)[:, 1:].abs().sum() == 0


def test_patches_are_ordered_by_row_column_channel() -> None:
    x = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]])[None]
    assert cut_patches(x, 2)[0].tolist() == [[1, 10, 2, 20, 4, 40, 5, 50]]  # the third row and column fill no patch
    assert cut_patches(x, 1)[0].tolist()[5] == [6, 60]


@pytest.mark.parametrize('patch', [1, 2, 3, 5, 8])
@pytest.mark.parametrize('size', [(8, 8), (17, 9)])
def test_tokenization_of_any_patch_and_size(patch: int, size: tuple[int, int]) -> None:
    layer = ShiftedPatchTokenization(3, 7, patch)
    tokens = layer(torch.randn(2, 3, *size))
    rows, cols = layer.grid_size(size)
    assert tokens.shape == (2, rows * cols, 7) and (rows, cols) == (size[0] // patch, size[1] // patch)
    tokens.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_a_token_has_seen_half_a_patch_around_it_and_no_more() -> None:
    """As an embedding (patch 4: two pixels around) and as pooling (patch 2: one)."""
    for patch in (2, 4):
        layer, x = ShiftedPatchTokenization(1, 3, patch), torch.randn(1, 1, 5 * patch, 5 * patch, requires_grad=True)
        layer(x)[0, 12].sum().backward()  # the middle one
        seen = x.grad[0, 0].ne(0)
        first, last = 2 * patch - patch // 2, 3 * patch + patch // 2
        assert seen[first:last, first:last].all() and seen.sum() == (2 * patch) ** 2


def test_pooling_takes_a_map_in_the_order_of_tokens() -> None:
    """A map that is a view of tokens gives what its copy gives."""
    tokens = torch.randn(2, 30, 8)
    view = tokens.transpose(1, 2).unflatten(2, (5, 6))
    layer = ShiftedPatchTokenization(8, 16, 2)
    torch.testing.assert_close(layer(view), layer(view.contiguous()))
    assert layer(view).shape == (2, 6, 16)


# -- locality attention ------------------------------------------------------------------------------------------------
@pytest.fixture(params=['fused', 'plain', 'operator'])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By which attention goes: torch's fused one, the plain formula, or our operator, whatever the size."""
    monkeypatch.setattr(layers, 'locality_attention_is_faster', lambda qkv: request.param == 'operator')
    return request.param


def attend(layer: LocalityAttention, qkv: Tensor, path: str) -> Tensor:
    layer.fused_attn = path != 'plain'
    with torch.no_grad():
        return layer.attend(qkv)


def attention_layer(dtype: torch.dtype = torch.float32, lsa: bool = True, tokens: int = 5) -> LocalityAttention:
    """Values as wide as there are tokens: see `probabilities`."""
    return LocalityAttention(12, 3, tokens, lsa, dtype=dtype)


def probabilities(layer: LocalityAttention, path: str, dtype: torch.dtype, tokens: int) -> Tensor:
    """[B, H, N, N], read out with values that are the unit vectors."""
    qkv = torch.randn(2, tokens, 3, 3, tokens, dtype=torch.float32)
    qkv[:, :, 1] = qkv[:, :, 0] * 4  # keys like queries: without a mask, everybody looks at himself
    qkv[:, :, 2] = torch.eye(tokens)[:, None, :]
    out = attend(layer, qkv.to(dtype), path)
    return out.view(2, tokens, 3, tokens).transpose(1, 2)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_nobody_attends_to_itself(dtype: torch.dtype, path: str) -> None:
    attn = probabilities(attention_layer(dtype), path, dtype, 5).float()
    assert attn.diagonal(dim1=2, dim2=3).abs().max() == 0
    torch.testing.assert_close(attn.sum(-1), torch.ones(2, 3, 5), rtol=0, atol=0.02)
    without = probabilities(attention_layer(dtype, lsa=False), path, dtype, 5).float()
    assert without.diagonal(dim1=2, dim2=3).mean() > 0.5


def test_the_temperature_multiplies_the_logits(path: str) -> None:
    layer, q = attention_layer(torch.float64), torch.randn(1, 5, 3, 5, dtype=torch.float64)
    nn.init.constant_(layer.temperature, 0.7)
    layer.temperature.data[1] = -2.
    v = torch.eye(5, dtype=torch.float64)[None, :, None].expand(1, 5, 3, 5)
    attn = attend(layer, torch.stack([q, q.flip(1), v], 2), path).view(5, 3, 5).transpose(0, 1)
    logits = torch.einsum('nhd,mhd->hnm', q[0], q[0].flip(0)) * layer.temperature.detach()[:, None, None]
    expected = logits.masked_fill(torch.eye(5, dtype=torch.bool), float('-inf')).softmax(-1)
    torch.testing.assert_close(attn, expected)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('tokens', [1, 2, 65])
def test_no_nan_forward_or_backward(dtype: torch.dtype, tokens: int, path: str) -> None:
    """Even with logits near the end of the type's range. A lone token attends to itself."""
    layer = attention_layer(dtype)
    layer.fused_attn = path != 'plain'
    for scale in (1., 30.):
        x = (torch.randn(3, tokens, 12) * scale).to(dtype).requires_grad_()
        out = layer(x)
        out.float().square().mean().backward()
        grads = [x.grad, *(p.grad for p in layer.parameters())]
        assert torch.isfinite(out).all() and all(torch.isfinite(g).all() for g in grads)
    if tokens == 1:
        expected = layer.proj(layer.project(x)[:, :, 2].flatten(2))
        torch.testing.assert_close(out, expected, rtol=0.02, atol=0.02)


def test_the_operator_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and every gradient, the temperatures' too, in several pieces."""
    monkeypatch.setattr(layers, 'locality_attention_is_faster', lambda qkv: True)
    monkeypatch.setattr(attention, '_SCORE_BYTES', 2 * 9 * 9 * 8)
    layer = LocalityAttention(12, 3, 4, dtype=torch.float64)
    nn.init.normal_(layer.temperature)
    x, weight = torch.randn(5, 9, 12, dtype=torch.float64, requires_grad=True), torch.randn(5, 9, 12).double()
    results = []
    for fused in (True, False):
        layer.fused_attn = fused
        out = layer(x)
        results.append([out, *torch.autograd.grad((out * weight).sum(), [x, *layer.parameters()])])
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)


@pytest.mark.parametrize('batch, tokens, dtype, by_operator', [
    (16, 64, torch.float32, True), (15, 64, torch.float32, False), (16, 64, torch.bfloat16, True),
    (8, 197, torch.bfloat16, True), (8, 197, torch.float32, False)])
def test_which_attention_is_taken(batch: int, tokens: int, dtype: torch.dtype, by_operator: bool) -> None:
    layer = LocalityAttention(12, 3, 4, dtype=dtype)
    with torch.profiler.profile() as seen:
        layer(torch.randn(batch, tokens, 12, dtype=dtype))
    names = ' '.join(event.key for event in seen.key_averages())
    assert ('locality_attention' in names) == by_operator != ('scaled_dot_product_attention' in names)


def test_the_operators_are_registered_right() -> None:
    qkv, temperature = torch.randn(2, 4, 3, 2, 4, requires_grad=True), torch.ones(2, requires_grad=True)
    torch.library.opcheck(torch.ops.tinyvit_zoo.locality_attention.default, (qkv, temperature))


def test_dropout_drops_attention_weights() -> None:
    layer = LocalityAttention(12, 3, 4, attn_drop=0.5)
    x = torch.randn(2, 5, 12)
    assert not torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer.eval()(x), layer(x))


def test_a_temperature_a_head_starts_at_the_usual_scale_and_learns() -> None:
    layer = LocalityAttention(24, 3, 16)
    assert layer.temperature.tolist() == [0.25] * 3
    layer(torch.randn(2, 5, 24)).square().sum().backward()
    assert (layer.temperature.grad != 0).all()
    assert LocalityAttention(24, 3, 16, lsa=False).temperature is None


def test_the_mask_is_made_once_and_serves_training_after_inference_mode() -> None:
    operator._made.cache_clear()
    layer, x = LocalityAttention(12, 3, 4, attn_drop=0.1), torch.randn(2, 6, 12)
    with torch.inference_mode():
        layer.eval()(x)
        first = diagonal_mask(torch.empty(6, 4))
    layer.train()(x).sum().backward()  # a mask born in inference mode could not be saved for this
    assert diagonal_mask(torch.empty(1, 3, 6, 4)) is first
    assert diagonal_mask(torch.empty(6, 4).double()).dtype == torch.float64


@pytest.mark.slow
def test_block_compiles_exports_and_scripts() -> None:
    block = LocalityBlock(24, 3, 2., lsa=True)
    x = torch.randn(3, 7, 24)
    expected = block(x)
    compiled = torch.compile(block, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())
    batch = torch.export.Dim('batch')
    program = torch.export.export(block.eval(), (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x[:2]), expected[:2])
    torch.testing.assert_close(torch.jit.script(block)(x), expected)


# -- another channel count of a Linear stem ----------------------------------------------------------------------------


def stem(kind: type[nn.Module], in_chans: int) -> nn.Module:
    module = kind(in_chans, 7, 4).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize('kind', [PatchTokenization, ShiftedPatchTokenization])
@pytest.mark.parametrize('old, new', [(3, 1), (5, 1), (1, 1), (1, 3), (3, 6), (1, 4)])
@torch.no_grad()
def test_a_grey_image_gives_the_same_tokens(kind: type[nn.Module], old: int, new: int) -> None:
    """Exact to one channel, and to any number that holds each channel equally often."""
    before, after = stem(kind, old), stem(kind, new)
    tensors = {f'stem.{name}': tensor for name, tensor in before.state_dict().items()}
    adapted = adapt_patch_channels({**tensors, 'other': torch.ones(3)}, 'stem', old, new)
    assert adapted.pop('other').tolist() == [1, 1, 1]
    after.load_state_dict({name.removeprefix('stem.'): tensor for name, tensor in adapted.items()})
    grey = torch.randn(2, 1, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(after(grey.expand(-1, new, -1, -1)), before(grey.expand(-1, old, -1, -1)))


def test_channels_are_repeated_in_turn_as_a_convolution_s_are() -> None:
    before = stem(PatchTokenization, 3)
    conv = before.proj.weight.detach().unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2)
    for new in (2, 4, 5):
        weight = adapt_patch_channels({'s.proj.weight': before.proj.weight.detach()}, 's', 3, new)['s.proj.weight']
        expected = timm.models.adapt_input_conv(new, conv.float())
        torch.testing.assert_close(weight.float().unflatten(1, (4, 4, new)).permute(0, 3, 1, 2), expected)


class Small(nn.Module):
    """The least that goes through timm's builder."""

    def __init__(self, in_chans: int = 3, num_classes: int = 2, patch_size: int = 4, device: Any = None) -> None:
        super().__init__()
        self._traits = {'first_conv': None}
        self.in_chans, self.num_classes = in_chans, num_classes
        self.tokenizer = ShiftedPatchTokenization(in_chans, 7, patch_size, device=device)
        self.head = nn.Linear(7, num_classes, device=device)


def small_filter(state_dict: dict[str, Tensor], model: nn.Module, source_size: Any = None) -> dict[str, Tensor]:
    return adapt_linear_stem(state_dict, model)


def create(state: dict[str, Tensor], **kwargs: Any) -> nn.Module:
    cfg = dict(
        state_dict=state, input_size=(3, 8, 8), num_classes=2, first_conv='tokenizer.proj', classifier='head',
        architecture='small')
    return build_model(Small, 'small', True, small_filter, pretrained_cfg=cfg, **kwargs)


def test_a_linear_stem_adapts_on_load_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    state = Small().state_dict()
    with caplog.at_level(logging.WARNING):
        model = create(state, in_chans=1)
    assert not caplog.records
    expected = adapt_patch_channels(state, 'tokenizer', 3, 1)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    assert torch.equal(create(state).tokenizer.proj.weight, state['tokenizer.proj.weight'])


@pytest.mark.parametrize('state, kwargs, words', [
    (Small(patch_size=8).state_dict(), dict(), r'proj.weight is \[7, 960\], expected \[7, 240\]'),
    (Small(patch_size=8).state_dict(), dict(in_chans=1), r'proj.weight is \[7, 960\], expected \[7, 80\]'),
    (Small(in_chans=1).state_dict(), dict(), r'proj.weight is \[7, 80\], expected \[7, 240\]'),
    ({k: v for k, v in Small().state_dict().items() if 'norm.bias' not in k}, dict(in_chans=1), 'norm.bias is missing'),
    ({**Small().state_dict(), 'tokenizer.norm.bias': torch.ones(5)}, dict(in_chans=1), r'norm.bias is \[5\]'),
])
def test_widths_that_channels_do_not_explain_are_refused(state: Any, kwargs: dict, words: str) -> None:
    with pytest.raises(ZooError, match=words):
        create(state, **kwargs)
