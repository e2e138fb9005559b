"""Crop, resize and map uint8 batches [B, C, H, W], each image by its own numbers, rounded as Pillow rounds."""
from collections.abc import Sequence
from typing import Union

import torch
import torch.nn.functional as F
from torch import Tensor

# 'nearest', 'bilinear', 'bicubic', or one flag an image: bicubic where it is set, bilinear elsewhere.
Kernel = Union[str, Tensor]


def to_bytes(x: Tensor) -> Tensor:
    """Truncate 0..255 to uint8; on the CPU several times faster than the direct conversion."""
    return x.to(torch.int16).to(torch.uint8)


def as_rows(images: Tensor) -> Tensor:
    """Return [B, H, C, W] float32: flattened, bmm from the left works along H, from the right along W."""
    return images.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)


def as_images(rows: Tensor) -> Tensor:
    return to_bytes(rows).transpose(1, 2).contiguous()


def crop(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int], padding: int, flip: Tensor) -> Tensor:
    """Pad each image with black, cut it at its own corner ([B] int64), flip it where `flip` is set."""
    h, w = size
    column = torch.arange(w, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], w - 1 - column, column)
    rows = top[:, None] + torch.arange(h, device=images.device)
    x, y = torch.broadcast_tensors(columns[:, None, :], rows[:, :, None])
    return _pixels(F.pad(images, (padding,) * 4), x, y)


def resized_crop(images: Tensor, box: Sequence[Tensor], size: tuple[int, int], kernel: Kernel, flip: Tensor) -> Tensor:
    """Resize each image's box (top, left, height, width: float32 whole numbers, [B]) as Pillow does, then flip it."""
    b, c, h, w = images.shape
    most = 255 if images.dtype == torch.uint8 else 65535
    top, left, height, width = box
    rows = _resize_matrix(top, height, h, size[0], kernel)
    columns = _resize_matrix(left, width, w, size[1], kernel, flip)
    x = torch.bmm(as_rows(images).view(b, h * c, w), columns.mT).clamp_(0, most).add_(0.5).floor_()
    x = torch.bmm(rows, x.view(b, h, c * size[1])).clamp_(0, most).add_(0.5)
    x = x.view(b, size[0], c, size[1])
    return as_images(x) if most == 255 else x.to(images.dtype).transpose(1, 2).contiguous()


def _resize_matrix(start: Tensor, length: Tensor, size: int, out: int, kernel: Kernel, flip: Tensor | None = None,
                   ) -> Tensor:
    """Return [B, out, size], which brings pixels `start` to `start + length` to `out`, antialiased."""
    target = torch.arange(out, dtype=torch.float32, device=start.device) + 0.5
    if flip is not None:
        target = torch.where(flip[:, None], out - target, target)
    scale = (length / out)[:, None]
    centre = start[:, None] + target * scale
    source = torch.arange(size, dtype=torch.float32, device=start.device) + 0.5
    within = (source > start[:, None]) & (source < (start + length)[:, None])
    source = torch.where(within, source, -1e6)                              # too far to have a weight
    distance = (source[:, None] - centre[:, :, None]).abs_().div_(scale.clamp_min(1)[:, :, None])
    if isinstance(kernel, str) and kernel == 'bilinear':
        weights = (1 - distance).clamp_min_(0)
    else:
        near = (1.5 * distance - 2.5) * distance * distance + 1     # the kernel of Pillow's bicubic resize
        far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.))
        if not isinstance(kernel, str):
            weights = torch.where(kernel[:, None, None], weights, (1 - distance).clamp_min_(0))
    return weights / weights.sum(2, keepdim=True)


def affine(images: Tensor, matrix: Sequence[Tensor], kernel: str, fill: Tensor) -> Tensor:
    """Take each output pixel from x' = a x + b y + c, y' = d x + e y + f of its centre: `matrix` is a to f, [B] each.

    As Pillow's transform: `fill` ([C] or a number) lies outside, and the border's pixels reach to the edge.
    """
    h, w = images.shape[2:]
    (a, b, c, d, e, f), centre = matrix, 0.5
    if kernel == 'nearest':     # Pillow's fixed point decides between two pixels where a centre falls on their edge
        centre, c, f = 0., c + (a + b) / 2, f + (d + e) / 2
        a, b, c, d, e, f = ((v * 65536 + 0.5).floor() / 65536 for v in (a, b, c, d, e, f))
    column = torch.arange(w, dtype=torch.float32, device=images.device) + centre
    row = torch.arange(h, dtype=torch.float32, device=images.device)[:, None] + centre
    a, b, c, d, e, f = (v[:, None, None] for v in (a, b, c, d, e, f))
    x, y = a * column + b * row + c, d * column + e * row + f               # [B, H, W]
    inside = (_within(x, w) * _within(y, h))[:, None]
    # On the CPU torch.where is many times slower than lerp, which is exact at 0 and 1.
    return to_bytes(torch.lerp(fill.view(-1, 1, 1), _sample(images, x, y, kernel), inside))


def _within(position: Tensor, size: int) -> Tensor:
    """Return 1 from 0 up to but not at `size`, else 0."""
    middle = (size - 1) / 2
    return (middle + 1 - (position.floor() - middle).abs_()).clamp_(0, 1)


def _pixels(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the pixels at column `x` and row `y`, both [B, h, w] int64."""
    b, c = images.shape[:2]
    index = (y * images.shape[3] + x).flatten(1)[:, None]
    return images.flatten(2).gather(2, index.expand(b, c, index.shape[2])).view(b, c, *x.shape[1:])


def _sample(images: Tensor, x: Tensor, y: Tensor, kernel: str) -> Tensor:
    """Return float32 [B, C, H, W] at the positions, truncated as Pillow does."""
    h, w = images.shape[2:]
    if kernel == 'nearest':
        return _pixels(images, x.long().clamp_(0, w - 1), y.long().clamp_(0, h - 1)).to(torch.float32)
    source = images.to(torch.float32)
    if kernel == 'bilinear':
        grid = torch.empty(*x.shape, 2, device=images.device)
        grid[..., 0], grid[..., 1] = x * (2 / w) - 1, y * (2 / h) - 1       # on the CPU faster than torch.stack
        sampled = F.grid_sample(source, grid, padding_mode='border', align_corners=False)
    else:       # Pillow's kernel for transforms, which neither its resize nor torch has
        sampled, columns = torch.zeros_like(source), _cubic_taps(x, w)
        for row, row_weight in _cubic_taps(y, h):
            for column, weight in columns:
                sampled.addcmul_(_pixels(source, column, row), (weight * row_weight)[:, None])
    # weights that add up to a hair below 1 in float32 must not cost a grey level
    return sampled.add_(1e-3).clamp_(0, 255).floor_()


def _cubic_taps(position: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return (pixel, weight) of the four neighbours on an axis; positions count pixel edges, a centre is at a half."""
    base = (position - 0.5).floor()
    f = position - 0.5 - base
    weights = (-f * (1 - f).square(), 1 - f * f * (2 - f), f * (1 + f * (1 - f)), f * f * (f - 1))
    base = base.long()
    return [((base + k).clamp_(0, size - 1), weight) for k, weight in zip(range(-1, 3), weights, strict=True)]
