"""Attention by the plain formula, a few images of one head at a time, so that the scores stay in the cache."""
from collections.abc import Iterator
from typing import Any, Optional, Tuple

import torch
from torch import Tensor

_SCORE_BYTES = 2 << 20  # scores held at a time; 1-4 MiB were the fastest sizes in fp32 and in bf16 (L2 cache)


def pieces(qkv: Tensor) -> Iterator[Tuple[slice, int]]:
    """(images, head) pairs that cover the batch; q[images, :, head] is a [b, N, D] view that bmm takes as it is."""
    batch, tokens, _, heads, _ = qkv.shape
    count = max(1, round(batch * tokens * tokens * qkv.element_size() / _SCORE_BYTES))
    step = -(-batch // count)
    for start in range(0, batch, step):
        for head in range(heads):
            yield slice(start, min(start + step, batch)), head


def product(a: Tensor, b: Tensor, scale: float = 1., out: Optional[Tensor] = None) -> Tensor:
    """scale * a @ b of [b, N, D] tensors, scaled before it is rounded: one pass over memory less.

    `out` is a view with gaps. Only bfloat16 kernels write into one; the others would go matrix by matrix on one core,
    which takes up to six times as long as a copy afterwards.
    """
    if out is not None and out.dtype == torch.bfloat16:
        return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
    result = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    torch.baddbmm(result, a, b, beta=0, alpha=scale, out=result)
    return result if out is None else out.copy_(result)


def probabilities(q: Tensor, k: Tensor, scale: float, diagonal: Optional[float] = None) -> Tensor:
    """softmax(scale * q k^T) of [b, N, D] tensors, the scores' diagonal set to `diagonal`."""
    scores = product(q, k.transpose(1, 2), scale)
    if diagonal is not None:
        scores.diagonal(dim1=1, dim2=2).fill_(diagonal)
    return scores.softmax(-1)


def attention_flops(qkv: Any, *_: Any) -> int:
    """Of q k^T and of the weighted values, for [B, N, 3, H, D]."""
    batch, tokens, _three, heads, head_dim = qkv
    return 2 * 2 * batch * heads * tokens * tokens * head_dim


def attention_backward_flops(qkv: Any, *_: Any) -> int:
    return 5 * attention_flops(qkv) // 2  # the scores again, and two products for each of the two
