"""Shifted patches as a merging of tokens."""
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor

from ..kernels.shifted_merging import shifted_merging
from .shifted import ShiftedPatchTokenization, cut_patches, shift_diagonally


def _kernel(weight: Tensor) -> Tensor:
    """Weights of a patch's shifted values [D, 20 C] as a convolution's [D, C, 4, 4]."""
    middle, *copies = weight.unflatten(1, (2, 2, 5, -1)).unbind(3)  # each [D, row, column, C]
    upper, lower = torch.cat(copies[:2], 2), torch.cat(copies[2:], 2)
    return (torch.cat([upper, lower], 1) + F.pad(middle, (0, 0, 1, 1, 1, 1))).permute(0, 3, 1, 2)


@torch.fx.wrap
@register_notrace_function
def merge_shifted(
        x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, proj_weight: Tensor, proj_bias: Tensor,
) -> Tensor:
    """[B, H, W, C] -> [B, H // 2, W // 2, D]: shifted patches of 2x2, LayerNorm, Linear."""
    if not torch.jit.is_scripting():
        if x.device.type == 'cpu' and type(x) is Tensor and not torch.compiler.is_compiling():
            weight = proj_weight * norm_weight
            kernel = _kernel(weight)
            if torch.is_autocast_enabled('cpu'):
                kernel = kernel.to(torch.get_autocast_dtype('cpu'))
            out = shifted_merging(x, kernel, weight.sum(1), eps)[0]
            return out + ((proj_weight * norm_bias).sum(1) + proj_bias).to(out.dtype)
    B, height, width, _ = x.shape
    x = cut_patches(shift_diagonally(x.permute(0, 3, 1, 2), 1), 2)
    x = F.linear(F.layer_norm(x, [x.shape[2]], norm_weight, norm_bias, eps), proj_weight, proj_bias)
    return x.reshape(B, height // 2, width // 2, x.shape[2])


class ShiftedMerging(ShiftedPatchTokenization):
    """Shifted patches of 2x2 as a merging, [B, H, W, C] -> [B, H // 2, W // 2, 2C]."""

    def __init__(self, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(dim, 2 * dim, 2, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return merge_shifted(
            x, self.norm.weight, self.norm.bias, self.norm.eps, self.proj.weight, self.proj.bias)
