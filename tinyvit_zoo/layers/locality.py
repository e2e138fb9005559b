"""Locality Self-Attention (arXiv 2112.13492): sharper attention, away from oneself.

Two changes to self-attention, against the flat attention that a small data set leaves behind:

- The temperature is learned. Softmax attention multiplies the logits by head_dim ** -0.5. Here every head has a number
  of its own, started at that value, in the attention module's parameter `temperature` [heads]. It multiplies.
- A token's logit with itself (the diagonal; the class token's too) is masked before the softmax. A token is most like
  itself, and what goes there is missing for its neighbours; the residual branch carries the token anyway.
"""
from functools import lru_cache
from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models import register_notrace_function
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from .attention import attention_backward_flops, attention_flops, pieces, product


def _diagonal_value(dtype: torch.dtype) -> float:
    return -3e4 if dtype == torch.float16 else -1e38


def _new_diagonal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(tokens, dtype=dtype, device=device) * _diagonal_value(dtype)  # ONNX has no fill_diagonal_


@lru_cache(maxsize=64)
def _kept_diagonal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return _new_diagonal_mask(tokens, dtype, device)


@torch.fx.wrap
@register_notrace_function
def diagonal_mask(q: Tensor) -> Tensor:
    """[N, N] to be added to the logits of queries [..., N, D]: zero, and on the diagonal what softmax turns to 0.

    Made once for a size, type and device. The number is finite: a lone token, who has nobody else, attends to itself;
    -inf would give NaN.
    """
    if not torch.jit.is_scripting():
        if not torch.compiler.is_compiling() and type(q) is Tensor:
            return _kept_diagonal_mask(q.shape[-2], q.dtype, q.device)
    return _new_diagonal_mask(q.shape[-2], q.dtype, q.device)


# -- on a CPU ----------------------------------------------------------------------------------------------------------
def _probabilities(q: Tensor, k: Tensor, temperature: float, masked: bool) -> Tensor:
    """softmax of the logits of [b, N, D] tensors."""
    scores = product(q, k.transpose(1, 2), temperature)
    if masked:
        scores.diagonal(dim1=1, dim2=2).fill_(_diagonal_value(q.dtype))
    return scores.softmax(-1)


@torch.library.custom_op('tinyvit_zoo::locality_attention', mutates_args=(), device_types='cpu')
def locality_attention(qkv: Tensor, temperature: Tensor, masked: bool) -> Tensor:
    """[B, N, 3, H, D] and temperatures [H] -> [B, N, H, D], a few images of one head at a time."""
    temperatures = temperature.tolist()
    out = qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:])
    q, k, v = qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for images, h in pieces(qkv):
            attn = _probabilities(q[images, :, h].contiguous(), k[images, :, h].contiguous(), temperatures[h], masked)
            product(attn, v[images, :, h], 1., out=out[images, :, h])
    return out


@torch.library.custom_op('tinyvit_zoo::locality_attention_backward', mutates_args=(), device_types='cpu')
def locality_attention_backward(
        grad: Tensor, qkv: Tensor, temperature: Tensor, masked: bool) -> Tuple[Tensor, Tensor]:
    """Gradients of qkv, packed as qkv is, and of the temperatures. The probabilities are computed again."""
    temperatures = temperature.tolist()
    grad_qkv = torch.empty_like(qkv)
    grad_temperature = torch.zeros_like(temperature, dtype=torch.promote_types(qkv.dtype, torch.float32))
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), grad_qkv.unbind(2)
    with torch.autocast('cpu', enabled=False):
        for images, h in pieces(qkv):
            g, queries, keys = (x[images, :, h].contiguous() for x in (grad, q, k))  # each is read twice
            t = temperatures[h]
            attn = _probabilities(queries, keys, t, masked)
            d_attn = torch.bmm(g, v[images, :, h].transpose(1, 2))
            d_score = torch._softmax_backward_data(d_attn, attn, -1, attn.dtype)
            product(attn.transpose(1, 2), g, 1., out=dv[images, :, h])
            per_score = d_score @ keys
            grad_temperature[h] += (per_score * queries).sum(dtype=grad_temperature.dtype)
            torch.mul(per_score, t, out=dq[images, :, h])
            product(d_score.transpose(1, 2), queries, t, out=dk[images, :, h])
    return grad_qkv, grad_temperature.to(temperature.dtype)


@locality_attention.register_fake
def _locality_attention_fake(qkv: Tensor, temperature: Tensor, masked: bool) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], *qkv.shape[3:])


@locality_attention_backward.register_fake
def _locality_attention_backward_fake(
        grad: Tensor, qkv: Tensor, temperature: Tensor, masked: bool) -> Tuple[Tensor, Tensor]:
    return torch.empty_like(qkv), torch.empty_like(temperature)


@register_flop_formula(torch.ops.tinyvit_zoo.locality_attention)
def _locality_attention_flops(qkv: Any, *_: Any, **__: Any) -> int:
    return attention_flops(qkv)


@register_flop_formula(torch.ops.tinyvit_zoo.locality_attention_backward)
def _locality_attention_backward_flops(grad: Any, qkv: Any, *_: Any, **__: Any) -> int:
    return attention_backward_flops(grad, qkv)


def _save_for_backward(ctx: Any, inputs: Tuple[Tensor, Tensor, bool], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.masked = inputs[2]


def _backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, None]:
    grads = torch.ops.tinyvit_zoo.locality_attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.masked)
    return (*grads, None)


locality_attention.register_autograd(_backward, setup_context=_save_for_backward)


# -- the layer ---------------------------------------------------------------------------------------------------------
def _operator_is_faster(qkv: Tensor) -> bool:
    """Measured on two cores with AVX-512: its calls cost as much as some hundred tokens' attention."""
    batch, tokens = qkv.shape[:2]
    return batch * tokens >= 1024 and (qkv.dtype == torch.bfloat16 or tokens <= 160)


@torch.fx.wrap
@register_notrace_function
def attend_locally(qkv: Tensor, temperature: Optional[Tensor], scale: float, dropout_p: float) -> Tensor:
    """[B, N, 3, H, D] -> [B, N, H * D]: locality self-attention with temperatures [H], or with None plain attention.

    By `scaled_dot_product_attention`, or on a CPU where it is the faster one by an operator of ours: the plain formula,
    in pieces that stay in the cache. Where there are tokens enough to make up for its more calls, that is 1.2 to 1.9
    times as fast in bfloat16, 2 to 4 times with the backward pass; in float32 up to 1.6 times for short sequences.
    """
    if not torch.jit.is_scripting():
        eager = type(qkv) is Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if eager and qkv.device.type == 'cpu' and dropout_p == 0. and _operator_is_faster(qkv):
            if temperature is None:
                return locality_attention(qkv, qkv.new_full((qkv.shape[3],), scale), False).flatten(2)
            return locality_attention(qkv, temperature, True).flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D]
    if temperature is None:
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
    else:
        q = q * temperature.to(q.dtype)[:, None, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=diagonal_mask(q), dropout_p=dropout_p, scale=1.)
    return x.transpose(1, 2).flatten(2)


class LocalityAttention(nn.Module):
    """Multi-head self-attention with (`lsa=True`) or without the two changes.

    `head_dim` times `num_heads` need not be `dim`, nor `out_dim`. `scale`: what multiplies the logits, or what the
    temperatures start at, if not head_dim ** -0.5.
    """
    fused_attn: torch.jit.Final[bool]

    def __init__(
            self,
            dim: int,
            num_heads: int,
            head_dim: int,
            lsa: bool = True,
            attn_drop: float = 0.,
            proj_drop: float = 0.,
            out_dim: Optional[int] = None,
            scale: Optional[float] = None,
            qkv_bias: bool = False,
            device: Any = None,
            dtype: Any = None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.scale = head_dim ** -0.5 if scale is None else scale
        self.fused_attn = use_fused_attn()
        self.temperature: Optional[nn.Parameter] = nn.Parameter(torch.empty(num_heads, **dd)) if lsa else None
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * head_dim, out_dim or dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_temperature()

    def reset_temperature(self) -> None:
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(self.project(x))))

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values [B, N, 3, H, D]."""
        return self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim)

    def attend(self, qkv: Tensor) -> Tensor:
        """[B, N, 3, H, D] -> [B, N, H * D]."""
        if self.fused_attn:
            return attend_locally(qkv, self.temperature, self.scale, self.attn_drop.p if self.training else 0.)
        v = qkv[:, :, 2].transpose(1, 2)  # [B, H, N, D]
        return (self.attn_drop(self.logits(qkv).softmax(dim=-1)) @ v).transpose(1, 2).flatten(2)

    def logits(self, qkv: Tensor) -> Tensor:
        """What the softmax is taken of [B, H, N, N], the masked diagonal with it. The fused path never holds it."""
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.temperature is not None:
            return (q * self.temperature[:, None, None]) @ k.transpose(-2, -1) + diagonal_mask(q)
        return (q * self.scale) @ k.transpose(-2, -1)
