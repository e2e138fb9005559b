"""Attention within windows of a map, for a few images at a time, whose windows stay in the cache.

Windows of 4x4 make many small matrices: on a CPU the time goes into moving tokens (shifting, cutting, splitting heads),
and `scaled_dot_product_attention` has no fused kernel for a learned mask. Only inputs are kept for the backward pass.
"""
from collections.abc import Iterator
from typing import Any, Tuple

import torch
from torch import Tensor

from .operator import backward_of, operator

_CHUNK_BYTES = 2 << 20      # queries, keys and values gathered at a time, for each thread (L2 cache)


def _chunks(qkv: Tensor) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES * torch.get_num_threads() // max(1, qkv[:1].numel() * qkv.element_size()))
    for start in range(0, len(qkv), step):
        yield slice(start, start + step)


def _gather(x: Tensor, order: Tensor, place: Tensor, area: int) -> Tensor:
    """Gather tokens [B, L, n, H, D] into windows [n, B * windows, H, area, D]; the padding is zero."""
    batch, _, n, heads, head_dim = x.shape
    flat = x.flatten(2)
    if len(order) == len(place):
        windows = flat.index_select(1, order)
    else:
        windows = flat.new_zeros(batch, len(order), flat.shape[2]).index_copy_(1, place, flat)
    return windows.view(-1, area, n, heads, head_dim).permute(2, 0, 3, 1, 4).contiguous()


def _scatter(x: Tensor, place: Tensor, out: Tensor) -> None:
    """Scatter windows back to tokens, into `out` [B, L, n, H, D]."""
    windows = x.permute(1, 3, 0, 2, 4).reshape(out.shape[0], -1, out[0, 0].numel())
    torch.index_select(windows, 1, place, out=out.flatten(2))


def _product(a: Tensor, b: Tensor) -> Tensor:  # of matrices in [windows, H, ...] tensors
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*a.shape[:3], b.shape[3])


def _probabilities(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """Return attention [B * windows, H, N, N], in float32 or better: softmax has no vectorised kernels in bf16."""
    windows, heads, area, _ = bias.shape
    scores = q.new_empty(q.shape[0] // windows, *bias.shape)
    scores.copy_(bias)
    scores.view(-1, area, area).baddbmm_(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    return scores.view(-1, heads, area, area).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))


def _flops(qkv: Any, temperature: Any, bias: Any, order: Any, *_: Any) -> int:
    batch, _tokens, _three, heads, head_dim = qkv
    return 2 * 2 * batch * heads * order[0] * bias[-1] * head_dim  # two products, as the plain formula has them


@operator('window_attention', lambda qkv, *_: torch.empty_like(qkv[:, :, 0]), _flops)
def window_attention(qkv: Tensor, temperature: Tensor, bias: Tensor, order: Tensor, place: Tensor) -> Tensor:
    """Attend [B, L, 3, H, D] -> [B, L, H, D], with temperatures [H] and a bias [windows or 1, H, N, N].

    `order`: the token in each place of the windows, any in the padding; `place`: the place of each token [L].
    """
    per_head = temperature.to(qkv.dtype)[:, None, None]
    out = torch.empty_like(qkv[:, :, :1])
    with torch.autocast('cpu', enabled=False):
        for images in _chunks(qkv):
            q, k, v = _gather(qkv[images], order, place, bias.shape[-1]).unbind(0)
            attn = _probabilities(q.mul_(per_head), k, bias).to(v.dtype)
            _scatter(_product(attn, v)[None], place, out[images])
    return out.squeeze(2)


@backward_of(window_attention, 'window_attention', lambda *shapes: 5 * _flops(*shapes) // 2, gradients=3)
def window_attention_backward(grad: Tensor, qkv: Tensor, temperature: Tensor, bias: Tensor, order: Tensor,
                              place: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of qkv, temperature and bias; sums are in float32 or better."""
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
