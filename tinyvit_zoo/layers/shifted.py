"""Shifted Patch Tokenization (arXiv 2112.13492): patches with half a patch of their surroundings.

Before the patches are cut, the image is stacked with four copies of itself, each shifted diagonally by half a patch:
tokens cover half a patch around their own, and their number stays. Outside the image is zero.
"""
from typing import Any, Dict, Mapping, Tuple

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function
from torch import Tensor, nn

from ..errors import ZooError
from ..kernels.convolution import shifted_merging
from ..kernels.operator import transformed


def shift_diagonally(x: Tensor, distance: int) -> Tensor:
    """Stack x [B, C, H, W] and copies moved right-down, left-down, right-up and left-up -> [B, 5C, H, W]."""
    d, height, width = distance, x.shape[2], x.shape[3]
    wide = F.pad(x, (d, d, d, d))
    corners = [(0, 0), (0, 2 * d), (2 * d, 0), (2 * d, 2 * d)]
    return torch.cat([x] + [wide[:, :, top:top + height, left:left + width] for top, left in corners], dim=1)


def patch_grid(img_size: Tuple[int, int], patch: int) -> Tuple[int, int]:
    """Return rows and columns of full patches in an image; ZooError if there are none."""
    if min(img_size) < patch:
        raise ZooError(f'{tuple(img_size)} pixels are too few: this tokenizer needs at least {patch} x {patch}.')
    return img_size[0] // patch, img_size[1] // patch


class PatchTokenization(nn.Module):
    """Image to tokens [B, C, H, W] -> [B, N, D]: cut patches, without rows and columns that fill none; Linear."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, **dd: Any) -> None:
        super().__init__()
        self.stacked_chans = in_chans
        self.patch_size = self.reduction = patch_size
        self.cuts_patches = True
        self.proj = nn.Linear(in_chans * patch_size ** 2, embed_dim, **dd)

    def grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        return patch_grid(img_size, self.patch_size)

    def largest_map(self, img_size: Tuple[int, int]) -> int:
        """Return the number of values in the largest activation of an image."""
        return self.stacked_chans * img_size[0] * img_size[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(cut_patches(x, self.patch_size))


class ShiftedPatchTokenization(PatchTokenization):
    """Image or map to tokens [B, C, H, W] -> [B, N, D]: shift by half a patch, cut patches, LayerNorm, Linear."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, **dd: Any) -> None:
        super().__init__(5 * in_chans, embed_dim, patch_size, **dd)
        self.norm = nn.LayerNorm(5 * in_chans * patch_size ** 2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = shift_diagonally(x, self.patch_size // 2)
        return self.proj(self.norm(cut_patches(x, self.patch_size)))


def cut_patches(x: Tensor, size: int) -> Tensor:
    """Cut [B, C, H, W] -> [B, N, size * size * C], values of a patch ordered by row, column, channel."""
    B, C = x.shape[0], x.shape[1]
    rows, cols = x.shape[2] // size, x.shape[3] // size
    x = x[:, :, :rows * size, :cols * size].reshape(B, C, rows, size, cols, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * cols, size * size * C)


def adapt_patch_channels(tensors: Mapping[str, Tensor], stem: str, old: int, new: int) -> Dict[str, Tensor]:
    """Adapt the Linear over cut patches `stem.proj` (and its LayerNorm `stem.norm`) to `new` channels.

    One channel gives exactly the output of the grey image in every channel: the LayerNorm's weights go into the Linear.
    Otherwise channels are repeated in turn, times old / new, as timm does for Conv2d.
    """
    weight = tensors[f'{stem}.proj.weight'].unflatten(1, (-1, old))  # [D, values of a channel, channels]
    norm = {name: tensors[name].unflatten(0, (-1, old)) for name in (f'{stem}.norm.weight', f'{stem}.norm.bias')
            if name in tensors}
    if new != 1:
        channels = torch.arange(new) % old
        changed = {name: tensor[:, channels].flatten() for name, tensor in norm.items()}
        return {**tensors, **changed, f'{stem}.proj.weight': (weight[:, :, channels] * (old / new)).flatten(1)}
    changed = {}
    if norm:
        scale, shift = norm.values()
        changed[f'{stem}.proj.bias'] = tensors[f'{stem}.proj.bias'] + (weight * shift).sum((1, 2))
        changed[f'{stem}.norm.weight'] = torch.ones_like(scale[:, 0])
        changed[f'{stem}.norm.bias'] = torch.zeros_like(shift[:, 0])
        weight = weight * scale
    return {**tensors, **changed, f'{stem}.proj.weight': weight.sum(2)}


@torch.fx.wrap
@register_notrace_function
def _merge_shifted(
        x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    """Merge [B, H, W, C] -> [B, H // 2, W // 2, D]: shifted patches of 2x2, LayerNorm, Linear."""
    if not torch.jit.is_scripting():
        eager = type(x) is Tensor and not torch.compiler.is_compiling() and not transformed()
        if eager and x.device.type == 'cpu':
            scaled = weight * norm_weight
            # a patch's shifted values [D, 20 C] as a convolution [D, C, 4, 4]: the copies, and the map in the middle
            middle, *copies = scaled.unflatten(1, (2, 2, 5, -1)).unbind(3)  # each [D, row, column, C]
            kernel = torch.cat([torch.cat(copies[:2], 2), torch.cat(copies[2:], 2)], 1)
            kernel = (kernel + F.pad(middle, (0, 0, 1, 1, 1, 1))).permute(0, 3, 1, 2)
            if torch.is_autocast_enabled('cpu'):
                kernel = kernel.to(torch.get_autocast_dtype('cpu'))
            out = shifted_merging(x, kernel, scaled.sum(1), eps)[0]
            return out + ((weight * norm_bias).sum(1) + bias).to(out.dtype)
    B, height, width, _ = x.shape
    x = cut_patches(shift_diagonally(x.permute(0, 3, 1, 2), 1), 2)
    x = F.linear(F.layer_norm(x, [x.shape[2]], norm_weight, norm_bias, eps), weight, bias)
    return x.reshape(B, height // 2, width // 2, x.shape[2])


class ShiftedMerging(ShiftedPatchTokenization):
    """Shifted patches of 2x2 as a merging, [B, H, W, C] -> [B, H // 2, W // 2, 2C]."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__(dim, 2 * dim, 2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return _merge_shifted(x, self.norm.weight, self.norm.bias, self.norm.eps, self.proj.weight, self.proj.bias)


# -- position tables: fixed sine tables, and resizing to other image sizes ---------------------------------------------
