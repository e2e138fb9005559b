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


def _new_diagonal_mask(tokens: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    mask = torch.zeros(tokens, tokens, dtype=dtype, device=device)
    return mask.fill_diagonal_(-3e4 if dtype == torch.float16 else -1e38)


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


def attend_locally(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, dropout_p: float = 0.) -> Tensor:
    """Locality self-attention of [B, H, N, D] tensors with temperatures [H]."""
    q = q * temperature.to(q.dtype)[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=diagonal_mask(q), dropout_p=dropout_p, scale=1.)


class LocalityAttention(nn.Module):
    """Multi-head self-attention with (`lsa=True`) or without the two changes; qkv without bias.

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
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * head_dim, out_dim or dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_temperature()

    def reset_temperature(self) -> None:
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x)
        return self.proj_drop(self.proj(self.attend(q, k, v)))

    def project(self, x: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, N, D]."""
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, N, D] tensors -> [B, N, H * D]."""
        dropout_p = self.attn_drop.p if self.training else 0.
        if self.fused_attn:
            if self.temperature is not None:
                x = attend_locally(q, k, v, self.temperature, dropout_p)
            else:
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=self.scale)
        else:
            if self.temperature is not None:
                attn = (q * self.temperature[:, None, None]) @ k.transpose(-2, -1) + diagonal_mask(q)
            else:
                attn = (q * self.scale) @ k.transpose(-2, -1)
            x = self.attn_drop(attn.softmax(dim=-1)) @ v
        return x.transpose(1, 2).flatten(2)
