"""Attention within windows of a map (Swin, arXiv 2103.14030), with or without the two changes of locality attention.

A token attends to its square window, and every other block shifts the windows by half their size. One additive mask
holds a learned bias for each offset between two tokens, the regions wrapped around the map's edge by the shift, the
padding of the last windows, and the diagonal that locality attention masks.

On a CPU a large map goes through `kernels.window_attention`; one that fits into the cache through the plain formula,
which is up to 1.5 times as fast there.
"""
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_, use_fused_attn
from timm.models import register_notrace_function
from torch import Tensor, nn

from ..errors import ZooError
from ..kernels.operator import kept, transformed
from ..kernels.window_attention import window_attention

_OPERATOR_FROM = 1 << 20    # numbers in queries, keys and values together


def _cut(x: Tensor, window: int) -> Tensor:
    """Cut [H, W] -> [windows, window * window]."""
    rows, cols = x.shape[0] // window, x.shape[1] // window
    return x.reshape(rows, window, cols, window).transpose(1, 2).reshape(rows * cols, window * window)


def _axis(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return the index along its axis of the token at each place of a padded and shifted map."""
    padded = -(-size // window) * window
    return (torch.arange(padded, device=device) + shift) % padded


def _regions(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Return regions [windows, window * window]: tokens of one region attend to each other; 4 is padding."""
    row, col = _axis(height, window, shift, device)[:, None], _axis(width, window, shift, device)
    region = 2 * (row < shift).long() + (col < shift).long()  # on which side of the edge that the shift wrapped
    return _cut(region.masked_fill((row >= height) | (col >= width), 4), window)


def _make_mask(height: int, width: int, window: int, shift: int, diagonal: bool, dtype: torch.dtype,
               device: torch.device) -> Tensor:
    area = window * window
    lowest = -65504. if dtype == torch.float16 else -3.38e38  # about: TorchScript knows no finfo
    region = _regions(height, width, window, shift, device)
    if shift == 0 and height % window == 0 and width % window == 0:
        region = region[:1]  # all windows are alike
    mask = torch.zeros(region.shape[0], area, area, dtype=dtype, device=device)
    if diagonal:
        mask = mask.masked_fill(torch.eye(area, dtype=torch.bool, device=device), 0.5 * lowest)
    return mask.masked_fill(region[:, :, None] != region[:, None, :], 0.75 * lowest)


def window_mask(x: Tensor, height: int, width: int, window: int, shift: int, diagonal: bool) -> Tensor:
    """Return the mask of the logits [windows or 1, N, N], of the type and on the device of `x`."""
    # finite, and less low on the diagonal than out of bounds: a token alone in its window attends to itself
    if torch.jit.is_scripting():
        mask = _make_mask(height, width, window, shift, diagonal, x.dtype, x.device)
    else:  # a constant for the compiler: inductor fails on its index arithmetic
        mask = kept(_make_mask, x, height, width, window, shift, diagonal, constant=True)
    return mask


def _make_order(height: int, width: int, window: int, shift: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    row, col = _axis(height, window, shift, device)[:, None], _axis(width, window, shift, device)
    token = _cut(row.clamp(max=height - 1) * width + col.clamp(max=width - 1), window).flatten()
    rows, cols = row.shape[0] // window, col.shape[0] // window
    place = torch.arange(token.shape[0], device=device).view(rows, cols, window, window).transpose(1, 2)
    place = place.reshape(rows * window, cols * window).roll([shift, shift], [0, 1])[:height, :width]
    return torch.cat([token, place.flatten()])


def window_order(x: Tensor, height: int, width: int, window: int, shift: int) -> Tuple[Tensor, Tensor]:
    """Return the token at each place of the windows (padding: any), and the place of each token."""
    if torch.jit.is_scripting():
        both = _make_order(height, width, window, shift, x.dtype, x.device)
    else:
        both = kept(_make_order, x, height, width, window, shift, constant=True)
    places = -(-height // window) * -(-width // window) * window * window  # Dynamo knows no shape of a constant
    return both[:places], both[places:]


def _bias(qkv: Tensor, table: Tensor, attn_mask: Optional[Tensor], window: int, shift: int, diagonal: bool) -> Tensor:
    """Return the sum of offsets' biases and mask for the logits [windows or 1, heads, N, N]."""
    if attn_mask is None:
        mask = window_mask(qkv, qkv.shape[1], qkv.shape[2], window, shift, diagonal)
    else:
        mask = attn_mask.to(qkv.dtype) + window_mask(qkv, window, window, window, 0, diagonal)
    axis = torch.arange(window, device=qkv.device)
    offset = axis[:, None] - axis[None, :] + window - 1  # [query, key]
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]  # rows of the table
    index = index.reshape(window * window, window * window)
    return table.to(qkv.dtype)[index].permute(2, 0, 1) + mask[:, None]


@torch.fx.wrap
@register_notrace_function
def attend_in_windows(qkv: Tensor, temperature: Optional[Tensor], table: Tensor, attn_mask: Optional[Tensor],
                      window: int, shift: int, fused: bool) -> Tensor:
    """Attend [B, H, W, 3, heads, D] -> [B, H, W, heads * D]; `fused=False`: by the plain formula.

    `temperature`: [heads] or None; `table`: [(2 * window - 1) ** 2, heads]; `attn_mask`: [windows, N, N] instead of the
    shift's mask. As in the authors' Swin, `shift` applies only to maps larger than a window both ways.
    """
    height, width, heads, head_dim = qkv.shape[1], qkv.shape[2], qkv.shape[4], qkv.shape[5]
    shift = shift if min(height, width) > window else 0
    bias = _bias(qkv, table, attn_mask, window, shift, temperature is not None)
    if temperature is None:
        temperature = torch.full([heads], head_dim ** -0.5, dtype=qkv.dtype, device=qkv.device)
    order, place = window_order(qkv, height, width, window, shift)
    if not torch.jit.is_scripting():
        if fused and qkv.device.type == 'cpu' and type(qkv) is Tensor and not torch.compiler.is_compiling():
            if qkv.numel() >= _OPERATOR_FROM and not transformed():
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
    return x.transpose(2, 3).flatten(3).flatten(1, 2).index_select(1, place).unflatten(1, [height, width])


class WindowAttention(nn.Module):
    """Attention in windows of a map [B, H, W, C], with a bias for each offset; `lsa` as in LocalityAttention."""
    fused_attn: torch.jit.Final[bool]
    attn_mask: Optional[Tensor]

    def __init__(self, dim: int, num_heads: int, window_size: int, shift: int, lsa: bool = True, proj_drop: float = 0.,
                 **dd: Any) -> None:
        super().__init__()
        if dim % num_heads:
            raise ZooError(f'num_heads is {num_heads}, expected a divisor of the width {dim}.')
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window_size = window_size
        self.shift = shift
        self.fused_attn = use_fused_attn()
        self.temperature: Optional[nn.Parameter] = nn.Parameter(torch.empty(num_heads, **dd)) if lsa else None
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads, **dd))
        self.register_buffer('attn_mask', None)  # else the mask of a checkpoint, for one map size
        self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_own_parameters()

    def reset_own_parameters(self) -> None:
        """Initialise the parameters that belong to no layer."""
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.head_dim ** -0.5)

    def project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values [B, H, W, 3, heads, D]."""
        return self.qkv(x).reshape(x.shape[0], x.shape[1], x.shape[2], 3, self.num_heads, self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = attend_in_windows(self.project(x), self.temperature, self.relative_position_bias_table, self.attn_mask,
                              self.window_size, self.shift, self.fused_attn)
        return self.proj_drop(self.proj(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return the input of the softmax for the whole map [B, heads, L, L]; -inf between windows."""
        qkv = self.project(x)
        height, width = qkv.shape[1:3]
        shift = self.shift if min(height, width) > self.window_size else 0
        diagonal, area = self.temperature is not None, self.window_size ** 2
        bias = _bias(qkv, self.relative_position_bias_table, self.attn_mask, self.window_size, shift, diagonal)
        place = window_order(qkv, height, width, self.window_size, shift)[1]
        index, inside = place // area % len(bias), place % area  # % for a bias that all windows share
        bias = bias[index[:, None], :, inside[:, None], inside].permute(2, 0, 1)  # [heads, L, L]
        apart = place[:, None] // area != place // area
        q, k, _ = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, D]
        scale = self.head_dim ** -0.5 if self.temperature is None else self.temperature[:, None, None]
        return (q * scale @ k.transpose(-2, -1) + bias).masked_fill(apart, -torch.inf)
