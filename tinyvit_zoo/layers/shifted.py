"""Shifted Patch Tokenization (arXiv 2112.13492): patches that have seen a little of their neighbours.

A patch cut from an image knows nothing beyond its edge, and a small data set does not teach attention to make up for
it. So the image is stacked with four copies of itself before the patches are cut. Each copy is shifted diagonally, to
one of the four corners, by half a patch: the five together hold everything up to half a patch around each patch, with
no more tokens. Four diagonals reach all eight neighbours; the unshifted image keeps the patch itself. What a shift
moves in from outside the image is zero.
"""
from typing import Any, Dict, Mapping, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ZooError


def shift_diagonally(x: Tensor, distance: int) -> Tensor:
    """[B, C, H, W] -> [B, 5C, H, W]: x, then copies whose content moved right-down, left-down, right-up and left-up."""
    d = distance
    height, width = x.shape[2], x.shape[3]
    wide = F.pad(x, (d, d, d, d))
    copies = [x]
    for top, left in ((0, 0), (0, 2 * d), (2 * d, 0), (2 * d, 2 * d)):
        copies.append(wide[:, :, top:top + height, left:left + width])
    return torch.cat(copies, dim=1)


def patch_grid(img_size: Tuple[int, int], patch: int) -> Tuple[int, int]:
    """Rows and columns of patches in an image, without those that are not full; ZooError where there are none."""
    if min(img_size) < patch:
        raise ZooError(f'A {img_size[0]} x {img_size[1]} image gives no token: this tokenizer takes {patch} x {patch} '
                       f'pixels and more.')
    return img_size[0] // patch, img_size[1] // patch


class PatchTokenization(nn.Module):
    """Image to tokens [B, C, H, W] -> [B, N, D]: cut patches, Linear.

    Rows and columns that do not fill a patch are left out.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.stacked_chans = in_chans
        self.patch_size = self.reduction = patch_size
        self.cuts_patches = True
        self.proj = nn.Linear(in_chans * patch_size ** 2, embed_dim, device=device, dtype=dtype)

    def grid_size(self, img_size: Tuple[int, int]) -> Tuple[int, int]:
        return patch_grid(img_size, self.patch_size)

    def largest_map(self, img_size: Tuple[int, int]) -> int:
        """Values an image has where they are the most."""
        return self.stacked_chans * img_size[0] * img_size[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(cut_patches(x, self.patch_size))


class ShiftedPatchTokenization(PatchTokenization):
    """Image or map to tokens [B, C, H, W] -> [B, N, D]: shift, cut patches, LayerNorm, Linear.

    As an embedding: `patch_size` pixels a patch, shifted by half of it. As pooling between stages: `patch_size=2`, so a
    shift by one, and twice the channels out.
    """

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, device: Any = None, dtype: Any = None) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__(5 * in_chans, embed_dim, patch_size, **dd)
        self.norm = nn.LayerNorm(5 * in_chans * patch_size ** 2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = shift_diagonally(x, self.patch_size // 2)
        return self.proj(self.norm(cut_patches(x, self.patch_size)))


def cut_patches(x: Tensor, size: int) -> Tensor:
    """[B, C, H, W] -> [B, N, size * size * C], values of a patch ordered by row, column, channel."""
    B, C = x.shape[0], x.shape[1]
    rows, cols = x.shape[2] // size, x.shape[3] // size
    x = x[:, :, :rows * size, :cols * size].reshape(B, C, rows, size, cols, size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(B, rows * cols, size * size * C)


def adapt_patch_channels(tensors: Mapping[str, Tensor], stem: str, old: int, new: int) -> Dict[str, Tensor]:
    """The tensors with the Linear over cut patches `stem.proj` (and its LayerNorm `stem.norm`) for `new` channels.

    To one channel: exactly what the grey image in every channel gives. The LayerNorm's statistics of a repeated image
    are those of the single one, but a weight a channel cannot be one weight, so the Linear takes the LayerNorm's over.
    To any other number: channels repeated in turn, the Linear times old / new, as timm does with convolutions.
    """
    weight = tensors[f'{stem}.proj.weight'].unflatten(1, (-1, old))  # [D, values of a channel, channels]
    norm = {name: tensors[name].unflatten(0, (-1, old)) for name in (f'{stem}.norm.weight', f'{stem}.norm.bias')
            if name in tensors}
    changed = {}
    if new == 1:
        if norm:
            scale, shift = norm[f'{stem}.norm.weight'], norm[f'{stem}.norm.bias']
            changed[f'{stem}.proj.bias'] = tensors[f'{stem}.proj.bias'] + (weight * shift).sum((1, 2))
            changed[f'{stem}.norm.weight'] = torch.ones_like(scale[:, 0])
            changed[f'{stem}.norm.bias'] = torch.zeros_like(shift[:, 0])
            weight = weight * scale
        changed[f'{stem}.proj.weight'] = weight.sum(2)
    else:
        channels = torch.arange(new) % old
        changed[f'{stem}.proj.weight'] = (weight[:, :, channels] * (old / new)).flatten(1)
        changed.update({name: tensor[:, channels].flatten() for name, tensor in norm.items()})
    return {**tensors, **changed}
