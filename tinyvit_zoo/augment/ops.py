"""Apply an operation to each image of a uint8 batch [B, C, H, W], with its own strength, rounded as Pillow rounds.

Nothing here draws random numbers or waits for the device. On the CPU an operation runs on the images that have it;
elsewhere on all of them, and the others keep their pixels: counting them would make the host wait.
"""
import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError
from .geometry import Kernel, affine, as_images, as_rows, to_bytes


class Op(IntEnum):
    """The operations; each one's argument is in the comment."""
    IDENTITY = 0
    INVERT = 1
    POSTERIZE = 2           # bits kept, 0 to 8
    SOLARIZE = 3            # the level from which on values are inverted
    SOLARIZE_ADD = 4        # added to the values below 128
    BRIGHTNESS = 5          # factor
    CONTRAST = 6            # factor
    COLOR = 7               # factor, 0 is grey
    AUTO_CONTRAST = 8
    EQUALIZE = 9
    SHARPNESS = 10          # factor, 0 is smooth
    HUE = 11                # turns, -0.5 to 0.5
    BLUR = 12               # radius (standard deviation) in pixels
    SHEAR_X = 13            # input over output pixels in this one and the three below, as in Pillow's transform
    SHEAR_Y = 14
    TRANSLATE_X = 15        # pixels
    TRANSLATE_Y = 16
    ROTATE = 17             # degrees counter-clockwise


class Constant:
    """A small tensor, copied to a device once."""

    def __init__(self, values: Any, dtype: torch.dtype | None = None) -> None:
        self.kept = {torch.device('cpu'): torch.as_tensor(values, dtype=dtype)}

    def on(self, device: torch.device) -> Tensor:
        if device not in self.kept:
            self.kept[device] = self.kept[torch.device('cpu')].to(device)
        return self.kept[device]


class Layer(NamedTuple):
    """One operation for each image of a batch."""
    op: Tensor                          # [B] int64
    arg: Tensor                         # [B] float32
    kernel: Kernel = 'bilinear'         # of the geometric operations
    fill: Tensor | None = None          # [C] or [1], outside of the image; black without


def apply(images: Tensor, layer: Layer, known: tuple[Op, ...], dense: bool | None = None) -> Tensor:
    """Apply to each image its own operation. `known`: all that may occur; `dense`: run each on the whole batch."""
    kind = _KIND_OF.on(images.device)[layer.op]
    if isinstance(layer.kernel, str):
        kernels = {_TRANSFORM: layer.kernel}
    else:                                                       # the bicubic ones apart from the bilinear ones
        kind = torch.where(layer.kernel & (kind == _TRANSFORM), _TRANSFORM + 1, kind)
        kernels = {_TRANSFORM: 'bilinear', _TRANSFORM + 1: 'bicubic'}
    if images.is_cpu and not dense:     # sorted by kind, so that each kind's images are one slice
        order, end = kind.argsort(), 0
        images, op, arg = (v.index_select(0, order) for v in (images, layer.op, layer.arg))
        for k, count in enumerate(kind.bincount().tolist()):
            start, end = end, end + count
            if k and count:
                own = Layer(op[start:end], arg[start:end], kernels.get(k, ''), layer.fill)
                images[start:end] = _KINDS[k - 1][0](images[start:end], own)
        return images.index_select(0, order.argsort())
    kinds = {_KIND[op] for op in known if op}
    for k in sorted(kinds | (kernels.keys() if _TRANSFORM in kinds else set())):
        done = _KINDS[k - 1][0](images, Layer(layer.op, layer.arg, kernels.get(k, ''), layer.fill))
        images = torch.where((kind == k)[:, None, None, None], done, images)
    return images


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Map values by uint8 tables of 256 entries, [B, C, 256]."""
    b, c = images.shape[:2]
    first = torch.arange(0, b * c * 256, 256, dtype=torch.int32, device=images.device).view(b, c, 1, 1)
    return tables.reshape(-1).index_select(0, (images + first).view(-1)).view_as(images)


_V, _T = torch.arange(256), torch.arange(257)[:, None]     # values, thresholds
_STEPS = 2 ** (8 - torch.arange(9))[:, None]
_BANK = Constant(torch.cat([    # tables [397, 256] of the operations on single values with a whole argument, from 0 on
    _V[None], 255 - _V[None], _V // _STEPS * _STEPS, torch.where(_V < _T, _V, 255 - _V),
    torch.where(_V < 128, (_V + _T[:129]).clamp_max(255), _V)]).to(torch.uint8))
_STARTS = {Op.IDENTITY: 0, Op.INVERT: 1, Op.POSTERIZE: 2, Op.SOLARIZE: 11, Op.SOLARIZE_ADD: 268}
_START_OF = Constant([_STARTS.get(op, 0) for op in Op])


def _point(images: Tensor, layer: Layer) -> Tensor:
    # A value is below a threshold where it is below the next whole one.
    which = _START_OF.on(images.device)[layer.op] + layer.arg.ceil().long()
    tables = _BANK.on(images.device)[which.clamp(0, 396)]
    return _look_up(images, tables[:, None].expand(-1, images.shape[1], 256))


def _equalize(images: Tensor, layer: Layer) -> Tensor:
    """Even out each channel's histogram in Pillow's integer arithmetic; a step of 0 leaves it as it is."""
    flat = images.flatten(2).long()
    one = torch.ones((), dtype=torch.int32, device=images.device)
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat, one.expand(flat.shape))
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    tables = (counts.cumsum(2, dtype=torch.int32) - counts + step // 2) // step.clamp_min(1)
    identity = torch.arange(256, dtype=torch.int32, device=images.device)
    return _look_up(images, torch.where(step > 0, tables.clamp_(0, 255), identity).to(torch.uint8))


def grey_level(images: Tensor) -> Tensor:
    """Return [B, 1, H, W] float32 whole numbers: Pillow's luma of three channels, the mean of any other number."""
    if images.shape[1] != 3:
        return images.to(torch.float32).mean(1, keepdim=True).add_(0.5).floor_()
    # 16-bit fixed point; every sum stays below 2**24, so float32 holds it exactly.
    red, green, blue = images.to(torch.float32).split(1, 1)
    grey = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return grey.add_(32768).mul_(2 ** -16).floor_()


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Blend as Pillow: 0 is the degenerate image, 1 the image itself, beyond 1 extrapolates; truncated."""
    difference = (images - degenerate).mul_(factor[:, None, None, None])
    return to_bytes(difference.add_(degenerate).clamp_(0, 255))


def _factor(images: Tensor, layer: Layer) -> Tensor:
    """Change brightness, contrast or colour: blend with black, the mean grey, or the grey of each pixel."""
    op = layer.op[:, None, None, None]
    grey = grey_level(images)
    mean = (grey.mean((1, 2, 3), keepdim=True) + 0.5).floor_()
    even = torch.where(op == Op.CONTRAST.value, mean, 0.)
    degenerate = torch.lerp(even, grey, (op == Op.COLOR.value).to(torch.float32))
    return _blend(degenerate, images.to(torch.float32), layer.arg)


def _auto_contrast(images: Tensor, layer: Layer) -> Tensor:
    """Stretch each channel to 0..255; a channel of one value stays."""
    low, high = (v.to(torch.float32) for v in (images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)))
    flat = low == high
    low, high = low.masked_fill(flat, 0.), high.masked_fill(flat, 255.)
    return to_bytes((images - low).mul_(255).div_(high - low).add_(1e-3))    # whole quotients whatever the rounding


_HUE_SHIFTS = Constant([[[5.]], [[3.]], [[1.]]])


def _hue(images: Tensor, layer: Layer) -> Tensor:
    """Turn the hue in Pillow's 8-bit HSV. A grey image has none and stays."""
    if images.shape[1] == 1:
        return images
    if images.shape[1] != 3:
        raise ZooError(f"Images of {images.shape[1]} channels have no hue: set the colour jitter's fourth number to 0.")
    x = images.to(torch.float32)
    value = x.amax(1)
    chroma = value - x.amin(1)
    ratios = (value[:, None] - x) / chroma.clamp_min(1)[:, None]
    red, green, blue = ratios.unbind(1)
    in_red, in_green, _ = (1 - 256 * ratios).clamp_min_(0).unbind(1)         # 1 where the channel is the maximum, or 0
    base = (4 - 2 * in_green) * (1 - in_red)
    up = torch.lerp(torch.lerp(green, red, in_green), blue, in_red)
    down = torch.lerp(torch.lerp(red, blue, in_green), green, in_red)
    # Float64 where Pillow has it: float32 would put some whole numbers on the other side of the truncation.
    turns = (base.double() + up - down).float().double() / 6
    hue = (turns - turns.floor()).float().double().mul_(255).floor_().float() + (layer.arg * 255).trunc()[:, None, None]
    hue = (hue - 256 * (hue / 256).floor_()) * (6 / 255)
    k = hue[:, None] + _HUE_SHIFTS.on(images.device)
    k = k - 6 * (k / 6).floor_()
    saturation = (255 * chroma / value.clamp_min(1) + 1e-3).floor_() / 255
    drop = (value * saturation)[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)
    return to_bytes((value[:, None] - drop).add_(0.5))


def _sharpness(images: Tensor, layer: Layer) -> Tensor:
    """Blend with a 3x3 mean whose centre counts five times; Pillow leaves the border as it is."""
    if min(images.shape[2:]) < 3:
        return images
    x = images.to(torch.float32)
    total = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = total[..., :-2] + total[..., 1:-1] + total[..., 2:]
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = total.add_(x[:, :, 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()
    return _blend(smooth, x, layer.arg)


def _box_matrix(radius: Tensor, size: int) -> Tensor:
    """Return [B, size, size], the mean over 2 * radius + 1 pixels, the border's pixels going on for ever.

    Pixel j covers j - 0.5 to j + 0.5, the first and the last reach to infinity; the weight is the overlap.
    """
    centre = torch.arange(size, dtype=torch.float32, device=radius.device)
    left, right = centre - 0.5, centre + 0.5
    left, right = F.pad(left[1:], (1, 0), value=-1e6), F.pad(right[:-1], (0, 1), value=1e6)
    half = radius[:, None, None] + 0.5
    overlap = torch.minimum(centre[:, None] + half, right) - torch.maximum(centre[:, None] - half, left)
    return overlap.clamp_min_(0) / (2 * half)


def _blur(images: Tensor, layer: Layer) -> Tensor:
    """Blur as Pillow: three box means an axis, of the fractional radius that gives the variance of the Gaussian."""
    b, c, h, w = images.shape
    variance = layer.arg.square() / 3
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    rows, columns = _box_matrix(whole + part, h), _box_matrix(whole + part, w).mT
    half = 0.5 - 1e-4       # Pillow's fixed-point weights add up to a little less than 1: its ties go down
    x = as_rows(images).view(b, h * c, w)
    for _ in range(3):
        x = torch.bmm(x, columns).add_(half).floor_()
    x = x.view(b, h, c * w)
    for _ in range(3):
        x = torch.bmm(rows, x).add_(half).floor_()
    return as_images(x.view(b, h, c, w))


def _transform(images: Tensor, layer: Layer) -> Tensor:
    """Shear, translate or rotate (about the centre) by one affine map."""
    h, w = images.shape[2:]
    op, arg, kernel, fill = layer
    angle = arg * (op == Op.ROTATE.value) * (-math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    xy = torch.where(op == Op.SHEAR_X.value, arg, sin)
    yx = torch.where(op == Op.SHEAR_Y.value, arg, -sin)
    x = torch.where(op == Op.TRANSLATE_X.value, arg, (1 - cos) * (w / 2) - sin * (h / 2))
    y = torch.where(op == Op.TRANSLATE_Y.value, arg, (1 - cos) * (h / 2) + sin * (w / 2))
    black = torch.zeros(1, device=images.device)
    return affine(images, (cos, xy, x, yx, cos, y), str(kernel), black if fill is None else fill)


_KINDS: tuple[tuple[Callable[[Tensor, Layer], Tensor], tuple[Op, ...]], ...] = (
    (_point, (Op.INVERT, Op.POSTERIZE, Op.SOLARIZE, Op.SOLARIZE_ADD)),
    (_factor, (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR)),
    (_auto_contrast, (Op.AUTO_CONTRAST,)),
    (_equalize, (Op.EQUALIZE,)),
    (_sharpness, (Op.SHARPNESS,)),
    (_hue, (Op.HUE,)),
    (_blur, (Op.BLUR,)),
    (_transform, (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)),
    (_transform, ()),           # with the bicubic kernel where each image has its own
)
_KIND = {op: k for k, (_, members) in enumerate(_KINDS, 1) for op in members}
_KIND_OF = Constant([_KIND.get(op, 0) for op in Op])
_TRANSFORM = len(_KINDS) - 1
