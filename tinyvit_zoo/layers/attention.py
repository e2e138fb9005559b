"""Multi-head self-attention that stays on the fast path, attention dropout on a CPU included; blocks of it; pooling.

Locality Self-Attention (arXiv 2112.13492) makes two changes that sharpen the flat attention of small datasets:

- The factor on the logits, head_dim ** -0.5, is learned: the parameter `temperature` [heads] starts at that value.
- A token's logit with itself (the diagonal, also of the class token) is masked before the softmax. It would be the
  largest and take weight from the neighbours; the residual branch carries the token anyway.
"""
from typing import Any, Optional

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_, use_fused_attn
from timm.models import register_notrace_function
from torch import Tensor, nn

from ..kernels.attention import diagonal_value, locality_attention, locality_attention_is_faster
from ..kernels.operator import kept, transformed


@torch.fx.wrap
@register_notrace_function
def attend(qkv: Tensor, scale: float, dropout_p: float) -> Tensor:
    """Attend [B, N, 3, H, D] -> [B, N, H * D]: softmax(scale * q k^T) v with attention dropout.

    A CPU trains short sequences in bfloat16 by the plain formula, 2 to 6 times as fast as by the fused backward pass.
    """
    if not torch.jit.is_scripting():
        if dropout_p > 0. and qkv.device.type == 'cpu' and scale == qkv.shape[-1] ** -0.5 and (
                torch.compiler.is_compiling() or not transformed()):
            return torch.ops.tinyvit_zoo.dropout_attention(qkv, dropout_p)[0].flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D]
    if q.requires_grad and dropout_p == 0. and q.is_cpu and q.dtype == torch.bfloat16 and q.shape[2] <= 256:
        x = ((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v
    else:
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention; `scale`: of the logits. `timm.layers.set_fused_attn(False)`: the plain formula."""
    fused_attn: torch.jit.Final[bool]

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0., proj_drop: float = 0.,
                 head_dim: Optional[int] = None, out_dim: Optional[int] = None, scale: Optional[float] = None,
                 qkv_bias: bool = False, **dd: Any) -> None:
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
        return attend(qkv, self.scale, dropout_p)

    def logits(self, x: Tensor) -> Tensor:
        """Return the input of the softmax [B, H, N, N], which the fused path does not store."""
        return self.scores(self.project(x))

    def scores(self, qkv: Tensor) -> Tensor:
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return (q * self.scale) @ k.transpose(-2, -1)


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
def attend_locally(qkv: Tensor, temperature: Tensor, dropout_p: float) -> Tensor:
    """Attend [B, N, 3, H, D] -> [B, N, H * D] with temperatures [H] and a masked diagonal."""
    if not torch.jit.is_scripting():
        eager = type(qkv) is Tensor and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if eager and qkv.device.type == 'cpu' and dropout_p == 0. and locality_attention_is_faster(qkv) and (
                not transformed()):
            return locality_attention(qkv, temperature).flatten(2)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, N, D]
    q = q * temperature.to(q.dtype)[:, None, None]
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=diagonal_mask(q), dropout_p=dropout_p, scale=1.)
    return x.transpose(1, 2).flatten(2)


class LocalityAttention(SelfAttention):
    """Multi-head self-attention with (`lsa=True`) or without the two changes; temperatures start at `scale`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, lsa: bool = True, attn_drop: float = 0.,
                 proj_drop: float = 0., out_dim: Optional[int] = None, scale: Optional[float] = None,
                 qkv_bias: bool = False, **dd: Any) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop, head_dim, out_dim, scale, qkv_bias, **dd)
        self.temperature: Optional[nn.Parameter] = nn.Parameter(torch.empty(num_heads, **dd)) if lsa else None
        self.reset_temperature()

    def reset_temperature(self) -> None:
        if self.temperature is not None:
            nn.init.constant_(self.temperature, self.scale)

    def attend_fused(self, qkv: Tensor, dropout_p: float) -> Tensor:
        if self.temperature is None:
            return attend(qkv, self.scale, dropout_p)
        return attend_locally(qkv, self.temperature, dropout_p)

    def scores(self, qkv: Tensor) -> Tensor:
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.temperature is not None:
            return (q * self.temperature[:, None, None]) @ k.transpose(-2, -1) + diagonal_mask(q)
        return (q * self.scale) @ k.transpose(-2, -1)


class Block(nn.Module):
    """The usual pre-norm block: attention, then the MLP, both residual; `init_values`: of LayerScale, if any."""

    def __init__(self, dim: int, attn: nn.Module, mlp_hidden: int, proj_drop: float = 0., drop_path: float = 0.,
                 init_values: Optional[float] = None, **dd: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, mlp_hidden, drop=proj_drop, **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0. else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class LocalityBlock(Block):
    """Block with plain attention, or with `lsa` locality attention."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, lsa: bool, attn_drop: float = 0.,
                 proj_drop: float = 0., drop_path: float = 0., qkv_bias: bool = False, **dd: Any) -> None:
        attn = LocalityAttention(dim, num_heads, dim // num_heads, lsa, attn_drop, proj_drop, qkv_bias=qkv_bias, **dd)
        super().__init__(dim, attn, int(dim * mlp_ratio), proj_drop, drop_path, **dd)


def init_xavier(module: nn.Module) -> None:
    """Initialise one module as the authors do: Linear weights xavier-normal, all else as PyTorch does."""
    if isinstance(module, nn.Linear):
        module.reset_parameters()  # for the bias
        nn.init.xavier_normal_(module.weight)
    elif isinstance(module, (nn.LayerNorm, nn.Conv2d)):
        module.reset_parameters()
    elif isinstance(module, LocalityAttention):
        module.reset_temperature()


def init_trunc_normal(module: nn.Module) -> None:
    """Initialise a Linear with truncated normal weights of 0.02 and no bias, a LayerNorm as PyTorch does."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, LocalityAttention):
        module.reset_temperature()


class SequencePool(nn.Module):
    """Pool tokens [B, N, D] -> [B, D], weighted by a softmax of learned scores (arXiv 2104.05704, section 3.4)."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weights(x).transpose(1, 2) @ x).squeeze(1)

    def weights(self, x: Tensor) -> Tensor:
        """Return weights [B, N, 1] that sum to one for each image."""
        return self.score(x).softmax(dim=1)
