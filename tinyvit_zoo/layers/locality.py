"""Locality Self-Attention (arXiv 2112.13492): two changes that sharpen the flat attention of small datasets.

- The factor on the logits, head_dim ** -0.5, is learned: the parameter `temperature` [heads] starts at that value.
- A token's logit with itself (the diagonal, also of the class token) is masked before the softmax. It would be the
  largest and take weight from the neighbours; the residual branch carries the token anyway.
"""
from typing import Any, Optional

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor, nn

from ..kernels.attention import diagonal_value, locality_attention, locality_attention_is_faster
from ..kernels.operator import kept
from .attention import SelfAttention


def _make_diagonal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.eye(tokens, dtype=dtype, device=device) * diagonal_value(dtype)  # ONNX has no fill_diagonal_


@torch.fx.wrap
@register_notrace_function
def diagonal_mask(q: Tensor) -> Tensor:
    """Return the mask [N, N] for the logits of queries [..., N, D]: 0, and on the diagonal a very low number."""
    if torch.jit.is_scripting():
        mask = _make_diagonal_mask(q.shape[-2], q.dtype, q.device)
    else:
        mask = kept(_make_diagonal_mask, q, q.shape[-2])
    return mask


@torch.fx.wrap
@register_notrace_function
def attend_locally(qkv: Tensor, temperature: Optional[Tensor], scale: float, dropout_p: float) -> Tensor:
    """Attend [B, N, 3, H, D] -> [B, N, H * D] with temperatures [H] and a masked diagonal; None: plainly."""
    if not torch.jit.is_scripting():
        eager = type(qkv) is Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if eager and qkv.device.type == 'cpu' and dropout_p == 0. and locality_attention_is_faster(qkv):
            scales = qkv.new_full((qkv.shape[3],), scale) if temperature is None else temperature
            return locality_attention(qkv, scales, temperature is not None).flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D]
    if temperature is None:
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
    else:
        q = q * temperature.to(q.dtype)[:, None, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=diagonal_mask(q), dropout_p=dropout_p, scale=1.)
    return x.transpose(1, 2).flatten(2)


class LocalityAttention(SelfAttention):
    """Multi-head self-attention with (`lsa=True`) or without the two changes; temperatures start at `scale`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, lsa: bool = True, attn_drop: float = 0.,
                 proj_drop: float = 0., out_dim: Optional[int] = None, scale: Optional[float] = None,
                 qkv_bias: bool = False, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(dim, num_heads, attn_drop, proj_drop, head_dim, out_dim, scale, qkv_bias, **dd)
        self.temperature: Optional[nn.Parameter] = nn.Parameter(torch.empty(num_heads, **dd)) if lsa else None
        self.reset_temperature()

    def reset_temperature(self) -> None:
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.scale)

    def attend_fused(self, qkv: Tensor, dropout_p: float) -> Tensor:
        return attend_locally(qkv, self.temperature, self.scale, dropout_p)

    def scores(self, qkv: Tensor) -> Tensor:
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.temperature is not None:
            return (q * self.temperature[:, None, None]) @ k.transpose(-2, -1) + diagonal_mask(q)
        return (q * self.scale) @ k.transpose(-2, -1)
