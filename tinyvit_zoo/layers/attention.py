"""Multi-head self-attention that stays on the fast path, attention dropout on a CPU included; pooling by attention."""
from typing import Any, Optional

import torch
import torch.nn.functional as F
from timm.layers import use_fused_attn
from timm.models import register_notrace_function
from torch import Tensor, nn

from ..kernels import attention  # noqa: F401  registers the operator


@torch.fx.wrap
@register_notrace_function
def attend(qkv: Tensor, dropout_p: float) -> Tensor:
    """Attend [B, N, 3, H, D] -> [B, N, H * D]: softmax(q k^T / sqrt(D)) v with attention dropout."""
    if not torch.jit.is_scripting():
        if dropout_p > 0. and qkv.device.type == 'cpu':
            return torch.ops.tinyvit_zoo.dropout_attention(qkv, dropout_p)[0].flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D]
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention; `scale`: of the logits. `timm.layers.set_fused_attn(False)`: the plain formula."""
    fused_attn: torch.jit.Final[bool]

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0., proj_drop: float = 0.,
                 head_dim: Optional[int] = None, out_dim: Optional[int] = None, scale: Optional[float] = None,
                 qkv_bias: bool = False, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim or dim // num_heads
        self.scale = self.head_dim ** -0.5 if scale is None else scale
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * num_heads * self.head_dim, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * self.head_dim, out_dim or dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(self.attend(self.project(x))))  # qkv is not held while `proj` runs

    def project(self, x: Tensor) -> Tensor:
        """Return queries, keys and values [B, N, 3, H, D]."""
        return self.qkv(x).reshape(x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim)

    def attend(self, qkv: Tensor) -> Tensor:
        """Attend [B, N, 3, H, D] -> [B, N, H * D]."""
        if self.fused_attn:
            return self.attend_fused(qkv, self.attn_drop.p if self.training else 0.)
        v = qkv[:, :, 2].transpose(1, 2)  # [B, H, N, D]
        return (self.attn_drop(self.scores(qkv).softmax(dim=-1)) @ v).transpose(1, 2).flatten(2)

    def attend_fused(self, qkv: Tensor, dropout_p: float) -> Tensor:
        return attend(qkv, dropout_p)

    def logits(self, x: Tensor) -> Tensor:
        """Return the input of the softmax [B, H, N, N], which the fused path does not store."""
        return self.scores(self.project(x))

    def scores(self, qkv: Tensor) -> Tensor:
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return (q * self.scale) @ k.transpose(-2, -1)


class SequencePool(nn.Module):
    """Pool tokens [B, N, D] -> [B, D], weighted by a softmax of learned scores (arXiv 2104.05704, section 3.4)."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights(x).transpose(1, 2) @ x).squeeze(1)

    def weights(self, x: Tensor) -> Tensor:
        """Return weights [B, N, 1] that sum to one for each image."""
        return self.score(x).softmax(dim=1)
