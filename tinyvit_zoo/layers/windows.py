"""Attention within windows of a map (Swin, arXiv 2103.14030), with or without the two changes of locality attention.

A map is cut into square windows, a token attends to those of its window, and every other block moves the windows by
half their size, so that what is near meets at last. Logits get a learned bias for each offset between two tokens.

One additive mask holds all of it: the bias, what the shift has wrapped around the map's edge, what only fills up the
last windows of a map that is no multiple of them, and the diagonal that locality attention leaves out.

Windows of 4x4 make for many small matrices. On a CPU the time goes into moving tokens about: shifting, cutting,
splitting the heads and back, each a pass through memory, and `scaled_dot_product_attention` has no fused kernel for a
mask that is learned. `window_attention`, an operator of ours, gathers the windows of a few images at a time, which
then stay in the cache to the end, and keeps nothing for the backward pass but its inputs. What fits into the cache as
a whole goes by the plain formula, which there is up to 1.5 times as fast.
"""
from functools import lru_cache
from typing import Any, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_, use_fused_attn
from timm.models import register_notrace_function
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

_OPERATOR_FROM = 1 << 20    # numbers in queries, keys and values together
_CHUNK_BYTES = 2 << 20      # queries, keys and values gathered at a time, for each thread (L2 cache)


def _cut(x: Tensor, window: int) -> Tensor:
    """[H, W] -> [windows, window * window]."""
    rows, cols = x.shape[0] // window, x.shape[1] // window
    return x.reshape(rows, window, cols, window).transpose(1, 2).reshape(rows * cols, window * window)


def _axis(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Where along its axis the token in each place of a padded and shifted map comes from."""
    padded = -(-size // window) * window
    return (torch.arange(padded, device=device) + shift) % padded


def _regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """[windows, window * window]: tokens attend to each other where the numbers are equal. 4 is padding."""
    row, col = _axis(height, window, shift, device)[:, None], _axis(width, window, shift, device)
    region = 2 * (row < shift).long() + (col < shift).long()  # on which side of the edge that the shift wrapped
    return _cut(region.masked_fill((row >= height) | (col >= width), 4), window)


def _new_mask(height: int, width: int, window: int, shift: int, diagonal: bool, like: Tensor) -> Tensor:
    area = window * window
    lowest = -65504. if like.dtype == torch.float16 else -3.38e38  # about: TorchScript knows no finfo
    if shift == 0 and height % window == 0 and width % window == 0:
        mask = torch.zeros(1, area, area, dtype=like.dtype, device=like.device)
        other = None
    else:
        region = _regions(height, width, window, shift, like.device)
        mask = torch.zeros(region.shape[0], area, area, dtype=like.dtype, device=like.device)
        other = region[:, :, None] != region[:, None, :]
    if diagonal:
        mask = mask.masked_fill(torch.eye(area, dtype=torch.bool, device=like.device), 0.5 * lowest)
    return mask if other is None else mask.masked_fill(other, 0.75 * lowest)


@lru_cache(maxsize=64)
def _kept_mask(
        height: int, width: int, window: int, shift: int, diagonal: bool, dtype: torch.dtype, device: torch.device,
) -> Tensor:
    with torch.inference_mode(False):
        return _new_mask(height, width, window, shift, diagonal, torch.empty(0, dtype=dtype, device=device))


@torch.compiler.assume_constant_result  # inductor's index arithmetic chokes on what makes these
def _constant_mask(
        height: int, width: int, window: int, shift: int, diagonal: bool, dtype: torch.dtype, device: torch.device,
) -> Tensor:
    return _kept_mask(height, width, window, shift, diagonal, dtype, device)


def window_mask(x: Tensor, height: int, width: int, window: int, shift: int, diagonal: bool) -> Tensor:
    """[windows or 1, N, N] to be added to the logits, of the type and on the device of `x`; made once for each.

    Its numbers are finite, as those of `diagonal_mask`, and for the same reason: a token that has its window for itself
    attends to itself, as the diagonal is less low than what is out of bounds.
    """
    if not torch.jit.is_scripting():
        if torch.compiler.is_dynamo_compiling():
            return _constant_mask(height, width, window, shift, diagonal, x.dtype, x.device)
        if not torch.compiler.is_compiling() and type(x) is Tensor:
            return _kept_mask(height, width, window, shift, diagonal, x.dtype, x.device)
    return _new_mask(height, width, window, shift, diagonal, x)


def _new_order(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    row, col = _axis(height, window, shift, device)[:, None], _axis(width, window, shift, device)
    token = _cut(row.clamp(max=height - 1) * width + col.clamp(max=width - 1), window).flatten()
    row = (torch.arange(height, device=device)[:, None] - shift) % row.shape[0]
    columns = col.shape[0]
    col = (torch.arange(width, device=device) - shift) % columns
    first = (row // window) * (columns * window) + (col // window) * (window * window)  # of the window
    place = first + row % window * window + col % window
    return torch.cat([token, place.flatten()])


@lru_cache(maxsize=64)
def _kept_order(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _new_order(height, width, window, shift, device)


@torch.compiler.assume_constant_result
def _constant_order(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    return _kept_order(height, width, window, shift, device)


def _order(x: Tensor, height: int, width: int, window: int, shift: int) -> Tensor:
    if not torch.jit.is_scripting():
        if torch.compiler.is_dynamo_compiling():
            return _constant_order(height, width, window, shift, x.device)
        if not torch.compiler.is_compiling() and type(x) is Tensor:
            return _kept_order(height, width, window, shift, x.device)
    return _new_order(height, width, window, shift, x.device)


def window_order(x: Tensor, height: int, width: int, window: int, shift: int) -> Tuple[Tensor, Tensor]:
    """The token in each place of the windows (padding: any), and the place of each token; made once, as the mask is."""
    both = _order(x, height, width, window, shift)
    places = both.shape[0] - height * width
    return both[:places], both[places:]


def _offset_index(window: int, device: torch.device) -> Tensor:
    """[N, N]: the row of the bias table for each query and key."""
    axis = torch.arange(window, device=device)
    row = (axis[:, None] - axis[None, :] + window - 1) * (2 * window - 1)  # [query, key]
    col = axis[:, None] - axis[None, :] + window - 1
    return (row[:, None, :, None] + col[None, :, None, :]).reshape(window * window, window * window)


# -- the operator ------------------------------------------------------------------------------------------------------
def _chunks(qkv: Tensor) -> Iterator[slice]:
    batch = qkv.shape[0]
    step = max(1, _CHUNK_BYTES * torch.get_num_threads() // max(1, qkv[:1].numel() * qkv.element_size()))
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def _gather(x: Tensor, order: Tensor, place: Tensor, area: int) -> Tensor:
    """Tokens [B, L, n, H, D] to windows [n, B * windows, H, area, D]; zero in the padding."""
    batch, _, n, heads, head_dim = x.shape
    flat = x.flatten(2)
    if len(order) == len(place):
        found = flat.index_select(1, order)
    else:
        found = flat.new_zeros(batch, len(order), flat.shape[2]).index_copy_(1, place, flat)
    return found.view(-1, area, n, heads, head_dim).permute(2, 0, 3, 1, 4).contiguous()


def _scatter(x: Tensor, place: Tensor, out: Tensor) -> None:
    """The way back, into `out` [B, L, n, H, D]."""
    found = x.permute(1, 3, 0, 2, 4).reshape(out.shape[0], -1, out[0, 0].numel())
    torch.index_select(found, 1, place, out=out.flatten(2))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products of [windows, H, ...] tensors."""
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:3], b.shape[3])


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """[B * windows, H, N, N], in float32 or better: softmax and its gradient have no vectorised kernels in bf16."""
    windows, heads, area, _ = bias.shape
    scores = q.new_empty(q.shape[0] // windows, *bias.shape)
    scores.copy_(bias)
    scores.view(-1, area, area).baddbmm_(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    return scores.view(-1, heads, area, area).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op('tinyvit_zoo::window_attention', mutates_args=(), device_types='cpu')
def window_attention(qkv: Tensor, temperature: Tensor, bias: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """[B, L, 3, H, D] -> [B, L, H, D]; temperatures [H]; bias [windows or 1, H, N, N]; see `window_order`."""
    per_head = temperature.to(qkv.dtype)[:, None, None]
    out = torch.empty_like(qkv[:, :, :1])
    with torch.autocast('cpu', enabled=False):
        for images in _chunks(qkv):
            q, k, v = _gather(qkv[images], order, place, bias.shape[-1]).unbind(0)
            attn = _probabilities(q.mul_(per_head), k, bias).to(v.dtype)
            _scatter(_product(attn, v)[None], place, out[images])
    return out.squeeze(2)


@torch.library.custom_op('tinyvit_zoo::window_attention_backward', mutates_args=(), device_types='cpu')
def window_attention_backward(
        grad: Tensor, qkv: Tensor, temperature: Tensor, bias: Tensor, order: Tensor, place: Tensor,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, temperature and bias; sums are kept in float32 or better."""
    area = bias.shape[-1]
    exact = torch.promote_types(qkv.dtype, torch.float32)
    per_head = temperature.to(qkv.dtype)[:, None, None]
    grad_qkv = torch.empty_like(qkv)
    grad_temperature = torch.zeros_like(temperature, dtype=exact)
    grad_bias = torch.zeros(bias.shape, dtype=exact)
    with torch.autocast('cpu', enabled=False):
        for images in _chunks(qkv):
            windows = _gather(qkv[images], order, place, area)
            q, k, v = windows.unbind(0)
            g = _gather(grad[images].unsqueeze(2), order, place, area)[0]
            scaled = q * per_head
            attn = _probabilities(scaled, k, bias)
            d_attn = _product(g, v.transpose(2, 3))
            d_score = torch._softmax_backward_data(d_attn.to(exact), attn, -1, exact)
            grad_bias += d_score.view(-1, *bias.shape).sum(0)
            d_score = d_score.to(q.dtype)
            per_logit = _product(d_score, k)
            grad_temperature += (q * per_logit).sum((0, 2, 3), dtype=exact)
            torch.mul(per_logit, per_head, out=q)
            k.copy_(_product(d_score.transpose(2, 3), scaled))
            v.copy_(_product(attn.to(g.dtype).transpose(2, 3), g))
            _scatter(windows, place, grad_qkv[images])  # which holds gradients now
    return grad_qkv, grad_temperature.to(temperature.dtype), grad_bias.to(bias.dtype)


@window_attention.register_fake
def _window_attention_fake(qkv: Tensor, temperature: Tensor, bias: Tensor, order: Tensor, place: Tensor) -> Tensor:
    return torch.empty_like(qkv[:, :, 0])


@window_attention_backward.register_fake
def _window_attention_backward_fake(
        grad: Tensor, qkv: Tensor, temperature: Tensor, bias: Tensor, order: Tensor, place: Tensor,
) -> Tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(temperature), torch.empty_like(bias)


@register_flop_formula(torch.ops.tinyvit_zoo.window_attention)
def _window_attention_flops(qkv: Any, temperature: Any, bias: Any, order: Any, place: Any, **_: Any) -> int:
    batch, _, _, heads, head_dim = qkv
    return 2 * 2 * batch * heads * order[0] * bias[-1] * head_dim  # two products, as the plain formula has them


@register_flop_formula(torch.ops.tinyvit_zoo.window_attention_backward)
def _window_attention_backward_flops(grad: Any, qkv: Any, *others: Any, **_: Any) -> int:
    return 5 * _window_attention_flops(qkv, *others) // 2  # the logits again, and two products for either product


def _save_for_backward(ctx: Any, inputs: Tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
    grads = torch.ops.tinyvit_zoo.window_attention_backward(grad.contiguous(), *ctx.saved_tensors)
    return (*grads, None, None)


window_attention.register_autograd(_backward, setup_context=_save_for_backward)


# -- the layer ---------------------------------------------------------------------------------------------------------
def _bias(
        qkv: Tensor, table: Tensor, attn_mask: Optional[Tensor], window: int, shift: int, diagonal: bool,
) -> Tensor:
    """What is added to the logits [windows or 1, heads, N, N]: the bias of each offset, and the mask."""
    if attn_mask is None:
        mask = window_mask(qkv, qkv.shape[1], qkv.shape[2], window, shift, diagonal)
    else:
        mask = attn_mask.to(qkv.dtype) + window_mask(qkv, window, window, window, 0, diagonal)
    return table.to(qkv.dtype)[_offset_index(window, qkv.device)].permute(2, 0, 1) + mask[:, None]


@torch.fx.wrap
@register_notrace_function
def attend_in_windows(
        qkv: Tensor, temperature: Optional[Tensor], table: Tensor, attn_mask: Optional[Tensor], window: int, shift: int,
        fused: bool,
) -> Tensor:
    """[B, H, W, 3, heads, D] -> [B, H, W, heads * D].

    Args:
        temperature: [heads] for locality attention, else None.
        table: bias for each offset [(2 * window - 1) ** 2, heads].
        attn_mask: [windows, N, N] in the place of what the map's size says, else None.
        shift: by what windows move where the map is larger than one both ways, as the authors of Swin have it.
        fused: False for the plain formula.
    """
    height, width, heads, head_dim = qkv.shape[1], qkv.shape[2], qkv.shape[4], qkv.shape[5]
    shift = shift if min(height, width) > window else 0
    bias = _bias(qkv, table, attn_mask, window, shift, temperature is not None)
    if temperature is None:
        temperature = torch.full([heads], head_dim ** -0.5, dtype=qkv.dtype, device=qkv.device)
    order, place = window_order(qkv, height, width, window, shift)
    if not torch.jit.is_scripting():
        if fused and qkv.device.type == 'cpu' and type(qkv) is Tensor and not torch.compiler.is_compiling():
            if qkv.numel() >= _OPERATOR_FROM:
                return window_attention(qkv.flatten(1, 2), temperature, bias, order, place).view(*qkv.shape[:3], -1)
            fused = False

    windows = qkv.flatten(1, 2).index_select(1, order).unflatten(1, [-1, window * window])
    q, k, v = windows.permute(3, 0, 1, 4, 2, 5).unbind(0)  # each [B, windows, heads, N, D]
    q = q * temperature.to(q.dtype)[:, None, None]
    if fused:
        flat = bias.expand(q.shape[1], -1, -1, -1).flatten(0, 1)  # windows and heads as one: every image has the same
        x = F.scaled_dot_product_attention(
            q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), attn_mask=flat, scale=1.).view_as(q)
    else:
        x = (q @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
    x = x.transpose(2, 3).flatten(3).flatten(1, 2).index_select(1, place)
    return x.unflatten(1, [height, width])


class WindowAttention(nn.Module):
    """Attention in windows of a map [B, H, W, C], with a bias for each offset; `lsa` as in LocalityAttention.

    `attn_mask` is None. Checkpoints of Swin carry the mask that follows from the map's size; one that carries another
    is honoured (see the model's checkpoint filter), and then bound to its size.
    """
    fused_attn: torch.jit.Final[bool]
    attn_mask: Optional[Tensor]

    def __init__(
            self,
            dim: int,
            num_heads: int,
            window_size: int,
            shift: int,
            lsa: bool = True,
            proj_drop: float = 0.,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window_size = window_size
        self.shift = shift
        self.fused_attn = use_fused_attn()
        self.temperature: Optional[nn.Parameter] = nn.Parameter(torch.empty(num_heads, **dd)) if lsa else None
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads, **dd))
        self.register_buffer('attn_mask', None)
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Those that are no layer's."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.head_dim ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        B, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(B, height, width, 3, self.num_heads, self.head_dim)
        x = attend_in_windows(
            qkv, self.temperature, self.relative_position_bias_table, self.attn_mask, self.window_size, self.shift,
            self.fused_attn)
        return self.proj_drop(self.proj(x))

    def logits(self, x: Tensor) -> Tensor:
        """What the softmax is taken of, for the whole map [B, heads, L, L]; -inf between two windows."""
        B, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(B, height, width, 3, self.num_heads, self.head_dim)
        shift = self.shift if min(height, width) > self.window_size else 0
        diagonal, area = self.temperature is not None, self.window_size ** 2
        bias = _bias(qkv, self.relative_position_bias_table, self.attn_mask, self.window_size, shift, diagonal)
        place = window_order(qkv, height, width, self.window_size, shift)[1]
        which, inside = place // area % len(bias), place % area  # % for a bias that all windows share
        bias = bias[which[:, None], :, inside[:, None], inside].permute(2, 0, 1)  # [heads, L, L]
        apart = place[:, None] // area != place // area
        q, k, _ = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, D]
        scale = self.head_dim ** -0.5 if self.temperature is None else self.temperature[:, None, None]
        return (q * scale @ k.transpose(-2, -1) + bias).masked_fill(apart, -torch.inf)
