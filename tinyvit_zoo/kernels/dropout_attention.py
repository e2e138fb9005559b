"""Attention with dropout, for which `scaled_dot_product_attention` has no fused CPU kernel.

With dropout it falls back to the plain formula, which on a CPU costs more than twice the fused one: every [N, N] matrix
goes through memory several times, and drawing the mask alone takes longer than the products. This operator computes the
same formula in pieces, draws 16 random bits a decision, and computes the softmax again in the backward pass, so that
only the mask is kept (one byte a weight).
"""
from typing import Any, Tuple

import torch
from torch import Tensor

from .operator import backward_of, operator
from .pieces import attention_backward_flops, attention_flops, pieces, probabilities, product

_LEVELS = 1 << 16       # a dropout rate is rounded to a multiple of 1 / 65536, and the scale is that of the rounded one


def _keep_scale(dropped_levels: int) -> float:
    """1 / (1 - p), and 0 where all is dropped."""
    return _LEVELS / (_LEVELS - dropped_levels) if dropped_levels < _LEVELS else 0.


def _draw_mask(mask: Tensor, dropped_levels: int) -> None:
    """Fill a bool tensor, true where kept. Four decisions a 64-bit draw: four times as fast as `bernoulli_`."""
    count = mask.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-2 ** 63, None)
    levels = bits.view(torch.int16)[:count].view(mask.shape)
    torch.ge(levels, dropped_levels - _LEVELS // 2, out=mask)


def _as(mask: Tensor, like: Tensor) -> Tensor:
    """Ones and zeros of another type; by way of uint8, whose conversion is vectorised where that of bool is not."""
    return mask.view(torch.uint8).to(like.dtype)


def _empty(qkv: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
    batch, tokens, _three, heads, head_dim = qkv.shape
    mask = torch.empty(heads, batch, tokens, tokens, dtype=torch.bool, device=qkv.device)
    return qkv.new_empty(batch, tokens, heads, head_dim), mask


@operator('dropout_attention', _empty, attention_flops, tags=(torch.Tag.nondeterministic_seeded,))
def dropout_attention(qkv: Tensor, dropout_p: float) -> Tuple[Tensor, Tensor]:
    """[B, N, 3, H, D] -> attention output [B, N, H, D], and the mask [H, B, N, N] that the backward pass needs."""
    dropped = round(dropout_p * _LEVELS)
    scale = qkv.shape[-1] ** -0.5
    out, mask = _empty(qkv)
    q, k, v = qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for images, head in pieces(qkv):
            attn = probabilities(q[images, :, head].contiguous(), k[images, :, head].contiguous(), scale)
            _draw_mask(mask[head, images], dropped)
            attn.mul_(_as(mask[head, images], attn))
            product(attn, v[images, :, head], _keep_scale(dropped), out=out[images, :, head])
        return out, mask


@backward_of(
    dropout_attention, 'dropout_attention', attention_backward_flops,
    saved=lambda inputs, output: (inputs[0], output[1], inputs[1]))
def dropout_attention_backward(grad: Tensor, qkv: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    """The gradient of qkv, packed as qkv is, so that autograd has nothing to stack."""
    keep_scale, scale = _keep_scale(round(dropout_p * _LEVELS)), qkv.shape[-1] ** -0.5
    score_scale = keep_scale * scale
    grad_qkv = torch.empty_like(qkv)
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), grad_qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for images, head in pieces(qkv):
            g, queries, keys = (x[images, :, head].contiguous() for x in (grad, q, k))  # each is read twice
            attn = probabilities(queries, keys, scale)
            keep = _as(mask[head, images], attn)
            d_attn = torch.bmm(g, v[images, :, head].transpose(1, 2)).mul_(keep)
            d_score = torch._softmax_backward_data(d_attn, attn, -1, attn.dtype)
            product(attn.mul_(keep).transpose(1, 2), g, keep_scale, out=dv[images, :, head])
            product(d_score, keys, score_scale, out=dq[images, :, head])
            product(d_score.transpose(1, 2), queries, score_scale, out=dk[images, :, head])
    return grad_qkv
