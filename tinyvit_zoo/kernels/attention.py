"""Attention in pieces that stay in the cache: with dropout, and locality attention without it.

`scaled_dot_product_attention` has no fused CPU kernel for dropout: its plain formula moves every [N, N] matrix through
memory several times, and drawing the mask takes longer than the products. The operators here process a few images of
one head at a time, draw 16 random bits a decision, and recompute the softmax in the backward pass: only the mask is
kept (one byte a weight).
"""
from collections.abc import Iterator
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .operator import backward_of, operator

_SCORE_BYTES = 2 << 20  # scores held at a time; 1-4 MiB were the fastest sizes in fp32 and in bf16 (L2 cache)
_LEVELS = 1 << 16       # a dropout rate is rounded to a multiple of 1 / 65536, and the scale is that of the rounded one


def _pieces(qkv: Tensor) -> Iterator[Tuple[slice, slice, int]]:
    """Yield indices (images, all tokens, head) that cover the batch; q[piece] is a [b, N, D] view for bmm."""
    batch, tokens, _, heads, _ = qkv.shape
    count = max(1, round(batch * tokens * tokens * qkv.element_size() / _SCORE_BYTES))
    step = max(1, -(-batch // count))
    for start in range(0, batch, step):
        for head in range(heads):
            yield slice(start, min(start + step, batch)), slice(None), head


def _product(a: Tensor, b: Tensor, scale: float = 1., out: Optional[Tensor] = None) -> Tensor:
    """Return scale * a @ b of [b, N, D] tensors, scaled before rounding, in `out`, a view with gaps, if given."""
    # only bfloat16 kernels write into such a view; the others would go matrix by matrix, six times as slow as a copy
    if out is not None and out.dtype == torch.bfloat16:
        return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
    result = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    torch.baddbmm(result, a, b, beta=0, alpha=scale, out=result)
    return result if out is None else out.copy_(result)


def _probabilities(q: Tensor, k: Tensor, scale: float, masked: bool = False) -> Tensor:
    """Return softmax(scale * q k^T) of [b, N, D] tensors; `masked`: without the scores' diagonal."""
    scores = _product(q, k.transpose(1, 2), scale)
    if masked:
        scores.diagonal(dim1=1, dim2=2).fill_(diagonal_value(scores.dtype))
    return scores.softmax(-1)


def _flops(qkv: Any, *_: Any) -> int:
    batch, tokens, _three, heads, head_dim = qkv
    return 2 * 2 * batch * heads * tokens * tokens * head_dim


def _backward_flops(*shapes: Any) -> int:
    return 5 * _flops(*shapes) // 2  # the scores again, and two products for each of the two


def _keep_scale(dropped_levels: int) -> float:
    """Return 1 / (1 - p), or 0 if all is dropped."""
    return _LEVELS / (_LEVELS - dropped_levels) if dropped_levels < _LEVELS else 0.


def _empty_and_mask(qkv: Tensor, *_: Any) -> Tuple[Tensor, Tensor]:
    batch, tokens, _three, heads, head_dim = qkv.shape
    return qkv.new_empty(batch, tokens, heads, head_dim), qkv.new_empty(heads, batch, tokens, tokens, dtype=torch.bool)


@operator('dropout_attention', _empty_and_mask, _flops, tags=(torch.Tag.nondeterministic_seeded,))
def dropout_attention(qkv: Tensor, dropout_p: float) -> Tuple[Tensor, Tensor]:
    """Attend [B, N, 3, H, D] -> [B, N, H, D]; also return the mask [H, B, N, N], which the backward pass needs."""
    dropped = round(dropout_p * _LEVELS)
    out, mask = _empty_and_mask(qkv)
    (q, k, v), kept = qkv.unbind(2), mask.permute(1, 2, 0, 3)
    with torch.autocast('cpu', enabled=False):
        for piece in _pieces(qkv):
            attn = _probabilities(q[piece].contiguous(), k[piece].contiguous(), qkv.shape[-1] ** -0.5)
            keep = kept[piece]  # four decisions a 64-bit draw: four times as fast as `bernoulli_`
            bits = torch.empty((keep.numel() + 3) // 4, dtype=torch.int64).random_(-2 ** 63, None)
            torch.ge(bits.view(torch.int16)[:keep.numel()].view(keep.shape), dropped - _LEVELS // 2, out=keep)
            attn.mul_(keep.view(torch.uint8).to(attn.dtype))  # the conversion of bool is not vectorised
            _product(attn, v[piece], _keep_scale(dropped), out=out[piece])
        return out, mask


@backward_of(dropout_attention, 'dropout_attention', _backward_flops,
             saved=lambda inputs, output: (inputs[0], output[1], inputs[1]))
def dropout_attention_backward(grad: Tensor, qkv: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    """Return the gradient of qkv, packed like qkv, so that autograd has nothing to stack."""
    keep_scale, scale = _keep_scale(round(dropout_p * _LEVELS)), qkv.shape[-1] ** -0.5
    grad_qkv = torch.empty_like(qkv)
    (q, k, v), (dq, dk, dv), kept = qkv.unbind(2), grad_qkv.unbind(2), mask.permute(1, 2, 0, 3)
    with torch.autocast('cpu', enabled=False):
        for piece in _pieces(qkv):
            g, queries, keys = (x[piece].contiguous() for x in (grad, q, k))  # each is read twice
            attn = _probabilities(queries, keys, scale)
            keep = kept[piece].view(torch.uint8).to(attn.dtype)
            d_attn = torch.bmm(g, v[piece].transpose(1, 2)).mul_(keep)
            d_score = torch._softmax_backward_data(d_attn, attn, -1, attn.dtype)
            _product(attn.mul_(keep).transpose(1, 2), g, keep_scale, out=dv[piece])
            _product(d_score, keys, keep_scale * scale, out=dq[piece])
            _product(d_score.transpose(1, 2), queries, keep_scale * scale, out=dk[piece])
    return grad_qkv


def diagonal_value(dtype: torch.dtype) -> float:
    """Return the value of a masked logit: finite, so that a lone token attends to itself without NaN."""
    return -3e4 if dtype == torch.float16 else -1e38


def locality_attention_is_faster(qkv: Tensor) -> bool:
    """Return whether it beats `scaled_dot_product_attention`, as measured on two cores with AVX-512.

    With enough tokens it is 1.2 to 1.9 times as fast in bfloat16 (2 to 4 times with the backward pass), in float32 up
    to 1.6 times for short sequences.
    """
    batch, tokens = qkv.shape[:2]
    return batch * tokens >= 1024 and (qkv.dtype == torch.bfloat16 or tokens <= 160)


@operator('locality_attention', lambda qkv, *_: qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:]), _flops)
def locality_attention(qkv: Tensor, temperature: Tensor) -> Tensor:
    """Attend [B, N, 3, H, D] -> [B, N, H, D] with temperatures [H]; no token attends to itself."""
    temperatures = temperature.tolist()
    out, (q, k, v) = qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:]), qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for piece in _pieces(qkv):
            attn = _probabilities(q[piece].contiguous(), k[piece].contiguous(), temperatures[piece[2]], masked=True)
            _product(attn, v[piece], out=out[piece])
    return out


@backward_of(locality_attention, 'locality_attention', _backward_flops, gradients=2)
def locality_attention_backward(grad: Tensor, qkv: Tensor, temperature: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the gradients of qkv, packed like qkv, and of the temperatures."""
    temperatures = temperature.tolist()
    grad_qkv = torch.empty_like(qkv)
    grad_temperature = torch.zeros_like(temperature, dtype=torch.promote_types(qkv.dtype, torch.float32))
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), grad_qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for piece in _pieces(qkv):
            g, queries, keys = (x[piece].contiguous() for x in (grad, q, k))  # each is read twice
            head, scale = piece[2], temperatures[piece[2]]
            attn = _probabilities(queries, keys, scale, masked=True)
            d_attn = torch.bmm(g, v[piece].transpose(1, 2))
            d_score = torch._softmax_backward_data(d_attn, attn, -1, attn.dtype)
            _product(attn.transpose(1, 2), g, out=dv[piece])
            per_score = d_score @ keys
            grad_temperature[head] += (per_score * queries).sum(dtype=grad_temperature.dtype)
            torch.mul(per_score, scale, out=dq[piece])
            _product(d_score.transpose(1, 2), queries, scale, out=dk[piece])
    return grad_qkv, grad_temperature.to(temperature.dtype)
