"""Multi-head self-attention that stays on the fast path, attention dropout on a CPU included.

`scaled_dot_product_attention` has a fused CPU kernel, but not one that drops attention weights: with dropout it falls
back to the plain formula, which on a CPU costs more than twice the fused one (every [N, N] matrix goes through memory
several times, and drawing the mask alone takes longer than the products). `attend` then uses an operator of ours: the
same formula, a few images of one head at a time so that the matrices stay in the cache, 16 random bits a decision, and
the softmax computed again in the backward pass, so that only the mask is kept (one byte a weight).
"""
from collections.abc import Iterator
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models import register_notrace_function
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

_SCORE_BYTES = 2 << 20  # scores held at a time; 1-4 MiB were the fastest sizes in fp32 and in bf16 (L2 cache)
_LEVELS = 1 << 16       # a dropout rate is rounded to a multiple of 1 / 65536, and the scale is that of the rounded one


def pieces(qkv: Tensor) -> Iterator[Tuple[slice, int]]:
    """(images, head) pairs that cover the batch; q[images, :, head] is a [b, N, D] view that bmm takes as it is."""
    batch, tokens, _, heads, _ = qkv.shape
    count = max(1, round(batch * tokens * tokens * qkv.element_size() / _SCORE_BYTES))
    step = -(-batch // count)
    for start in range(0, batch, step):
        for head in range(heads):
            yield slice(start, min(start + step, batch)), head


def product(a: Tensor, b: Tensor, scale: float, out: Optional[Tensor] = None) -> Tensor:
    """scale * a @ b of [b, N, D] tensors, scaled before it is rounded: one pass over memory less.

    `out` is a view with gaps. Only bfloat16 kernels write into one; the others would go matrix by matrix on one core,
    which takes up to six times as long as a copy afterwards.
    """
    if out is not None and out.dtype == torch.bfloat16:
        return torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
    result = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    torch.baddbmm(result, a, b, beta=0, alpha=scale, out=result)
    return result if out is None else out.copy_(result)


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) of [b, N, D] tensors."""
    return product(q, k.transpose(1, 2), q.shape[-1] ** -0.5).softmax(-1)


def _scale(dropped_levels: int) -> float:
    """What keeps the expectation: 1 / (1 - p), and 0 where all is dropped."""
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


@torch.library.custom_op(
    'tinyvit_zoo::dropout_attention', mutates_args=(), device_types='cpu',
    tags=(torch.Tag.nondeterministic_seeded,))
def dropout_attention(qkv: Tensor, dropout_p: float) -> Tuple[Tensor, Tensor]:
    """[B, N, 3, H, D] -> attention output [B, N, H, D], and the mask [H, B, N, N] that the backward pass needs."""
    batch, tokens, _, heads, head_dim = qkv.shape
    dropped = round(dropout_p * _LEVELS)
    out = qkv.new_empty(batch, tokens, heads, head_dim)
    mask = torch.empty(heads, batch, tokens, tokens, dtype=torch.bool)
    q, k, v = qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for images, head in pieces(qkv):
            attn = _probabilities(q[images, :, head].contiguous(), k[images, :, head].contiguous())
            _draw_mask(mask[head, images], dropped)
            attn.mul_(_as(mask[head, images], attn))
            product(attn, v[images, :, head], _scale(dropped), out=out[images, :, head])
        return out, mask


@torch.library.custom_op('tinyvit_zoo::dropout_attention_backward', mutates_args=(), device_types='cpu')
def dropout_attention_backward(grad: Tensor, qkv: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    """The gradient of qkv, packed as qkv is, so that autograd has nothing to stack."""
    dropped = round(dropout_p * _LEVELS)
    keep_scale = _scale(dropped)
    score_scale = keep_scale * qkv.shape[-1] ** -0.5
    grad_qkv = torch.empty_like(qkv)
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), grad_qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for images, head in pieces(qkv):
            g, queries, keys = (x[images, :, head].contiguous() for x in (grad, q, k))  # each is read twice
            attn = _probabilities(queries, keys)
            keep = _as(mask[head, images], attn)
            d_attn = torch.bmm(g, v[images, :, head].transpose(1, 2)).mul_(keep)
            d_score = torch._softmax_backward_data(d_attn, attn, -1, attn.dtype)
            product(attn.mul_(keep).transpose(1, 2), g, keep_scale, out=dv[images, :, head])
            product(d_score, keys, score_scale, out=dq[images, :, head])
            product(d_score.transpose(1, 2), queries, score_scale, out=dk[images, :, head])
    return grad_qkv


@dropout_attention.register_fake
def _dropout_attention_fake(qkv: Tensor, dropout_p: float) -> Tuple[Tensor, Tensor]:
    batch, tokens, _, heads, head_dim = qkv.shape
    return (qkv.new_empty(batch, tokens, heads, head_dim),
            qkv.new_empty(heads, batch, tokens, tokens, dtype=torch.bool))


@dropout_attention_backward.register_fake
def _dropout_attention_backward_fake(grad: Tensor, qkv: Tensor, mask: Tensor, dropout_p: float) -> Tensor:
    return torch.empty_like(qkv)


@register_flop_formula(torch.ops.tinyvit_zoo.dropout_attention)
def attention_flops(qkv: Any, *_: Any, **__: Any) -> int:
    """Of q k^T and of what the values are weighted with, for [B, N, 3, H, D]."""
    batch, tokens, _three, heads, head_dim = qkv
    return 2 * 2 * batch * heads * tokens * tokens * head_dim


@register_flop_formula(torch.ops.tinyvit_zoo.dropout_attention_backward)
def attention_backward_flops(grad: Any, qkv: Any, *_: Any, **__: Any) -> int:
    return 5 * attention_flops(qkv) // 2  # the logits again, and two products for either product


def _save_for_backward(ctx: Any, inputs: Tuple[Tensor, float], output: Tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.dropout_p = inputs[1]
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> Tuple[Tensor, None]:
    qkv, mask = ctx.saved_tensors
    return torch.ops.tinyvit_zoo.dropout_attention_backward(grad.contiguous(), qkv, mask, ctx.dropout_p), None


dropout_attention.register_autograd(_backward, setup_context=_save_for_backward)


@torch.fx.wrap
@register_notrace_function
def attend(qkv: Tensor, dropout_p: float) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with attention dropout: [B, N, 3, H, D] -> [B, N, H * D]."""
    if not torch.jit.is_scripting():
        if dropout_p > 0. and qkv.device.type == 'cpu':
            return torch.ops.tinyvit_zoo.dropout_attention(qkv, dropout_p)[0].flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D]
    x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, qkv without bias. `timm.layers.set_fused_attn(False)` gives the plain formula."""
    fused_attn: torch.jit.Final[bool]

    def __init__(
            self,
            dim: int,
            num_heads: int,
            attn_drop: float = 0.,
            proj_drop: float = 0.,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.project(x)
        if self.fused_attn:
            x = attend(qkv, self.attn_drop.p if self.training else 0.)
        else:
            v = qkv[:, :, 2].transpose(1, 2)  # [B, H, N, D]
            x = (self.attn_drop(self.logits(qkv).softmax(dim=-1)) @ v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values [B, N, 3, H, D]."""
        return self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim)

    def logits(self, qkv: Tensor) -> Tensor:
        """What the softmax is taken of [B, H, N, N]. The fused path never holds it."""
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return (q * self.head_dim ** -0.5) @ k.transpose(-2, -1)
