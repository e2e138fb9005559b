"""JPEG compression as batched tensor operations on any device, without the lossless entropy coding.

Follows libjpeg's defaults: YCbCr, chroma subsampled 2x2, 8x8 cosine transforms, the standard quantization tables, and
triangle-filtered chroma upsampling. Most pixels equal Pillow's; libjpeg computes in integers, so a few coefficients
round differently.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError

# The tables of the standard's annex K, at quality 50.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress and decode uint8 images [B, 1 or 3, H, W] with `quality` from 1 to 100."""
    if images.shape[1] == 1:
        return _plane(images.float(), _table(_LUMA, quality, images.device)).to(torch.uint8)
    if images.shape[1] != 3:
        raise ZooError(f'JPEG holds 1 or 3 channels, not {images.shape[1]}: give grey or colour images.')
    h, w = images.shape[2:]
    luma, chroma = _to_ycc(images.float())
    luma = _plane(luma, _table(_LUMA, quality, images.device))
    chroma = _plane(_halve(chroma), _table(_CHROMA, quality, images.device))
    return _to_rgb(luma, _double(chroma[..., :(w + 1) // 2])[:, :, :h, :w]).to(torch.uint8)


def _table(values: tuple[int, ...], quality: int, device: torch.device) -> Tensor:
    """Return the quantization steps [8, 8]."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = [min(255, max(1, (v * percent + 50) // 100)) for v in values]
    return torch.tensor(steps, dtype=torch.float32, device=device).view(8, 8)


def _cosines(device: torch.device) -> Tensor:
    """Return the orthonormal DCT matrix [8, 8]; rows are frequencies."""
    n = torch.arange(8, dtype=torch.float64)
    matrix = (math.pi / 8 * (n + 0.5) * n[:, None]).cos() / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


def _plane(plane: Tensor, table: Tensor) -> Tensor:
    """Quantize the cosine transform of integers [B, C, H, W], and transform back to integers."""
    b, c, h, w = plane.shape
    padded = F.pad(plane - 128, (0, -w % 8, 0, -h % 8), mode='replicate')
    cosines = _cosines(plane.device)
    blocks = padded.view(b, c, -1, 8, padded.shape[3] // 8, 8).transpose(3, 4)      # [B, C, H/8, W/8, 8, 8]
    waves = cosines @ blocks @ cosines.T / table
    waves = waves.abs().add_(0.5).floor_() * waves.sign() * table                   # halves away from 0
    blocks = cosines.T @ waves @ cosines
    return (blocks.transpose(3, 4).reshape(padded.shape)[:, :, :h, :w] + 128.5).floor_().clamp_(0, 255)


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Return luma [B, 1, H, W] and chroma [B, 2, H, W], as integers."""
    red, green, blue = rgb.split(1, 1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue + 0.5).floor_()
    cb = 128.49 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue              # halves go down
    cr = 128.49 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue
    return luma, torch.cat([cb, cr], 1).floor_()


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    cb, cr = (chroma - 128).split(1, 1)
    red, blue = (1.402 * cr + 0.5).floor_(), (1.772 * cb + 0.5).floor_()
    green = (-0.344136286 * cb - 0.714136286 * cr + 0.5).floor_()
    return torch.cat([luma + red, luma + green, luma + blue], 1).clamp_(0, 255)


def _halve(chroma: Tensor) -> Tensor:
    """Average 2x2 pixels. As in libjpeg, the right border is padded before (to whole blocks), the lower one after."""
    h, w = chroma.shape[2:]
    padded = F.pad(chroma, (0, -w % 16, 0, h % 2), mode='replicate')
    total = padded.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).sum((3, 5))
    bias = 1 + torch.arange(total.shape[3], device=chroma.device) % 2               # else rounding would brighten
    return (total + bias).div_(4).floor_()


def _double(chroma: Tensor) -> Tensor:
    """Double the size, weighting the nearest row and column 3:1 against the next."""
    rows = F.pad(chroma, (0, 0, 1, 1), mode='replicate')
    rows = torch.stack([3 * chroma + rows[:, :, :-2], 3 * chroma + rows[:, :, 2:]], 3).flatten(2, 3)
    both = F.pad(rows, (1, 1, 0, 0), mode='replicate')
    both = torch.stack([3 * rows + both[..., :-2] + 8, 3 * rows + both[..., 2:] + 7], 4).flatten(3, 4)
    return both.div_(16).floor_()
