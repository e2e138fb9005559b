"""Attention dropout on the CPU is the definition's: its mask, its scale, its gradients."""
import pytest
import timm
import torch
import torch.nn.functional as F

from tinyvit_zoo.kernels import attention, convolution
from tinyvit_zoo.kernels.attention import dropout_attention
from tinyvit_zoo.layers import attend, is_sine_table, resize_table, sine_table


def definition(qkv: torch.Tensor, mask: torch.Tensor, rate: float) -> torch.Tensor:
    """dropout(softmax(q k^T / sqrt(D))) v with a given mask: [B, N, 3, H, D] -> [B, N, H, D]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attn = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (attn * mask.transpose(0, 1) / (1 - rate) @ v).transpose(1, 2)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
@pytest.mark.parametrize('shape', [(5, 20, 3, 3, 8), (1, 1, 3, 1, 4), (3, 65, 3, 2, 16)])
def test_dropout_attention_and_its_gradient(shape: tuple, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, '_SCORE_BYTES', 2 * 20 * 20 * 8)  # several pieces, the last one smaller
    qkv = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out, mask = dropout_attention(qkv, rate)
    exact = round(rate * 65536) / 65536
    expected = definition(qkv, mask, exact)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(out)
    torch.testing.assert_close(
        torch.autograd.grad(out, qkv, grad), torch.autograd.grad(expected, qkv, grad), rtol=0, atol=1e-11)


def test_mask_keeps_the_right_share_and_follows_the_seed() -> None:
    qkv = torch.randn(8, 64, 3, 2, 16)
    torch.manual_seed(5)
    out, mask = dropout_attention(qkv, 0.1)
    assert mask.float().mean().item() == pytest.approx(0.9, abs=0.005)
    assert mask.float().mean((1, 2)).std() < 0.2  # no row or column is singled out
    torch.manual_seed(5)
    again = dropout_attention(qkv, 0.1)
    assert torch.equal(out, again[0]) and torch.equal(mask, again[1])
    assert not torch.equal(mask, dropout_attention(qkv, 0.1)[1])


def test_dropping_everything_gives_zeros() -> None:
    assert dropout_attention(torch.randn(2, 4, 3, 1, 4), 1.0)[0].abs().sum() == 0


def test_operator_is_registered_right() -> None:
    """Schema, fake tensors and autograd, as torch.compile needs them."""
    qkv = torch.randn(2, 4, 3, 2, 4, requires_grad=True)
    torch.library.opcheck(
        torch.ops.tinyvit_zoo.dropout_attention.default, (qkv, 0.3),
        test_utils=('test_schema', 'test_autograd_registration', 'test_faketensor'))


def test_no_dropout_takes_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.tinyvit_zoo, 'dropout_attention', None)
    qkv = torch.randn(2, 5, 3, 2, 4)
    everything = torch.ones(2, 2, 5, 5)
    torch.testing.assert_close(attend(qkv, 0.5, 0.), definition(qkv, everything, 0.).flatten(2))


@pytest.mark.parametrize('dtype, tokens, trains, fused', [
    (torch.bfloat16, 64, True, False), (torch.bfloat16, 64, False, True), (torch.float32, 64, True, True),
    (torch.bfloat16, 300, True, True)])
def test_short_sequences_train_in_bf16_by_the_plain_formula(
        dtype: torch.dtype, tokens: int, trains: bool, fused: bool) -> None:
    """The fused kernel's backward pass is several times slower there; the values are the same."""
    qkv = torch.randn(2, tokens, 3, 2, 8, dtype=dtype, requires_grad=trains)
    with torch.profiler.profile() as seen:
        out = attend(qkv, 0.3, 0.)
    assert any('scaled_dot_product' in event.key for event in seen.key_averages()) == fused
    q, k, v = qkv.detach().float().permute(2, 0, 3, 1, 4)
    expected = (0.3 * q @ k.transpose(-2, -1)).softmax(-1) @ v
    torch.testing.assert_close(out.float(), expected.transpose(1, 2).flatten(2), rtol=0, atol=0.03)


def test_bf16_dropout_attention_is_close() -> None:
    qkv = torch.randn(2, 64, 3, 2, 16)
    torch.manual_seed(1)
    half, mask = dropout_attention(qkv.bfloat16(), 0.2)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), definition(qkv, mask, 0.2), rtol=0, atol=0.05)


def test_a_table_is_computed_or_interpolated() -> None:
    sine = sine_table(16, 8)
    assert is_sine_table(sine.half()) and not is_sine_table(torch.randn(1, 16, 8))
    torch.testing.assert_close(resize_table(sine, (4, 4), (6, 3), 0), sine_table(18, 8))
    ramp = torch.arange(4.).repeat_interleave(4).view(1, 16, 1).expand(1, 16, 8)  # grows down the rows
    with_class = torch.cat([torch.full((1, 1, 8), 9.), ramp], 1)
    resized = resize_table(with_class, (4, 4), (8, 2), 1)
    assert resized.shape == (1, 17, 8) and (resized[:, 0] == 9).all()
    assert (resized[0, 1:, 0].view(8, 2).diff(dim=0) > 0).all()


@pytest.mark.parametrize('batch, size, width, kernel, stride, padding', [
    (5, (13, 17), 8, 3, 1, 1), (130, (32, 32), 64, 3, 1, 1), (3, (30, 21), 6, 7, 2, 3)])
def test_conv_pool_is_the_three_operations(
        batch: int, size: tuple, width: int, kernel: int, stride: int, padding: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """In several pieces, the last one smaller."""
    monkeypatch.setattr(convolution, '_CHUNK_BYTES', 1 << 18)
    x, weight = torch.randn(batch, 3, *size), torch.randn(width, 3, kernel, kernel)
    expected = F.max_pool2d(F.relu(F.conv2d(x, weight, None, stride, padding)), 3, 2, 1)
    found = convolution.conv_pool(x.contiguous(memory_format=torch.channels_last), weight, stride, padding)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.library.opcheck(convolution.conv_pool, (x[:2], weight, stride, padding))


@pytest.mark.slow
@torch.no_grad()
def test_compiled_inference_takes_any_batch_and_exports_stay_free_of_our_operator() -> None:
    model = timm.create_model('cct_2_3x2').eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for batch in (3, 7):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16):
            torch.testing.assert_close(compiled(x).float(), model(x).float(), rtol=0.05, atol=0.05)
    program = torch.export.export(model, (torch.randn(3, 3, 32, 32),))
    assert 'tinyvit_zoo' not in program.graph_module.code
    graphs: list[str] = []
    torch.compile(model, backend=lambda graph, _: graphs.append(graph.code) or graph)(x)
    assert 'tinyvit_zoo' in graphs[0]
    model.tokenizer.convs[0].register_forward_hook(lambda module, args, out: 2 * out)   # our operator would pass it by
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
