"""Fifteen corruptions at five severities, batched, for any image size and device.

The families are those of CIFAR-10-C and ImageNet-C (arXiv 1903.12261), operations and strengths are ours: figures are
not comparable with the official sets (`robustness.open_published`). Lengths are in pixels of a 32-pixel image and grow
with the shorter side from there on. With the same generator state all severities draw the same random numbers.
"""
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ZooError, nearest

SEVERITIES = 5


def corrupt(images: Tensor, name: str, severity: int, generator: torch.Generator) -> Tensor:
    """Corrupt uint8 images [B, C, H, W] with `severity` 1 to 5; the generator is on their device."""
    if name not in _CORRUPTIONS:
        raise ZooError(f'There is no corruption {name!r}.{nearest(name, CORRUPTIONS)} Use {", ".join(CORRUPTIONS)}.')
    if severity not in range(1, SEVERITIES + 1):
        raise ZooError(f'severity is {severity}, expected 1 to {SEVERITIES}.')
    _, apply, strengths = _CORRUPTIONS[name]
    x = apply(images.to(torch.float32) / 255, strengths[severity - 1], generator)
    return (x.clamp(0, 1) * 255).round_().to(torch.uint8)


def _unit(x: Tensor) -> float:
    """Return how many pixels make one pixel of a 32-pixel image, 1 or more."""
    return max(1., min(x.shape[2:]) / 32)


def _uniform(x: Tensor, generator: torch.Generator, *size: int) -> Tensor:
    return torch.rand(len(x), *size, generator=generator, device=x.device)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    """Replace each value by a Poisson count, with mean `photons` for white."""
    return torch.poisson(x * photons, generator=generator) / photons


def _impulse_noise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a share of the values to 0 or 1."""
    u = _uniform(x, generator, *x.shape[1:])
    return torch.where(u < share / 2, 0., torch.where(u < share, 1., x))


def _filter(x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve with odd kernels [1 or B, kh, kw] that sum to 1, border pixels replicated."""
    # by the Fourier transform: blurring a large image takes a kernel of thousands of pixels
    h, w = kernels.shape[1:]
    padded = F.pad(x, (w // 2, w // 2, h // 2, h // 2), mode='replicate')
    size = padded.shape[2], padded.shape[3]
    spectrum = torch.fft.rfft2((kernels / kernels.sum((1, 2), keepdim=True))[:, None], s=size)
    return torch.fft.irfft2(torch.fft.rfft2(padded) * spectrum, s=size)[..., h - 1:, w - 1:]


def _offsets(radius: float, device: torch.device) -> Tensor:
    return torch.arange(-math.ceil(radius), math.ceil(radius) + 1, dtype=torch.float32, device=device)


def _smooth(x: Tensor, deviation: float) -> Tensor:
    """Blur with a Gaussian."""
    weights = (-0.5 * (_offsets(3 * deviation, x.device) / deviation).square()).exp()
    return _filter(x, (weights[:, None] * weights)[None])


def _defocus_blur(x: Tensor, radius: float, generator: torch.Generator) -> Tensor:
    """Blur with a disc whose border is antialiased."""
    radius *= _unit(x)
    offsets = _offsets(radius, x.device)
    distance = torch.hypot(offsets[:, None], offsets)
    return _filter(x, (radius + 0.5 - distance).clamp(0, 1)[None])


def _along(x: Tensor, length: float, angle: Tensor) -> Tensor:
    """Average along a line in each image's own direction, [B] radians."""
    offsets = _offsets(length / 2, x.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along, across = cos * offsets + sin * offsets[:, None], cos * offsets[:, None] - sin * offsets
    return _filter(x, (length / 2 + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp_min(0))


def _zoom_blur(x: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Average over magnifications from 1 to `most`."""
    steps = [1 + (most - 1) * i / 7 for i in range(8)]
    return sum((_sample(x, _grid(x) / zoom) for zoom in steps), torch.zeros_like(x)) / len(steps)


def _grid(x: Tensor) -> Tensor:
    """Return the pixels' centres [1, H, W, 2], from -1 to 1."""
    rows, columns = ((torch.arange(n, device=x.device) + 0.5) * (2 / n) - 1 for n in x.shape[2:])
    y, xs = torch.meshgrid(rows, columns, indexing='ij')
    return torch.stack([xs, y], -1)[None]


def _sample(x: Tensor, grid: Tensor, mode: str = 'bilinear') -> Tensor:
    return F.grid_sample(x, grid.expand(len(x), -1, -1, -1), mode, 'border', align_corners=False)


def _glass_blur(x: Tensor, reach: float, generator: torch.Generator) -> Tensor:
    """Take every pixel of a slightly blurred image from a random place nearby, and blur again."""
    reach *= _unit(x)
    h, w = x.shape[2:]
    moved = (2 * _uniform(x, generator, h, w, 2) - 1) * x.new_tensor([2 * reach / w, 2 * reach / h])
    return _smooth(_sample(_smooth(x, reach / 4), _grid(x) + moved, 'nearest'), reach / 4)


def _clouds(x: Tensor, generator: torch.Generator, cells: int, octaves: int) -> Tensor:
    """Return smooth noise [B, 1, H, W] from 0 to 1, the sum of ever finer and weaker random grids."""
    total = torch.zeros(len(x), 1, *x.shape[2:], device=x.device)
    for octave in range(octaves):
        grid = _uniform(x, generator, 1, cells << octave, cells << octave)
        total += F.interpolate(grid, x.shape[2:], mode='bicubic', align_corners=False) * 0.6 ** octave
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def _fog(x: Tensor, thickness: float, generator: torch.Generator) -> Tensor:
    """Blend with light grey by a smooth random share."""
    covered = thickness * (0.6 + 0.4 * _clouds(x, generator, 2, 4))
    return torch.lerp(x, torch.full_like(x, 0.85), covered.expand_as(x))


def _frost(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Cover part of the image with generated ridges of bluish ice; the official sets blend in photographs."""
    cover = ((_clouds(x, generator, 2, 2) + share - 1) * 6).clamp(0, 1)
    ridges = (1 - (2 * _clouds(x, generator, 8, 2) - 1).abs()).square()
    ice = x.new_tensor([0.80, 0.88, 0.95] if x.shape[1] == 3 else [0.88])[None, :, None, None]
    return torch.lerp(x, ice.expand_as(x), (cover * (0.25 + 0.6 * ridges)).expand_as(x))


def _snow(x: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Add streaks of falling flakes to a paler image."""
    h, w = (math.ceil(size / _unit(x)) for size in x.shape[2:])
    flakes = (_uniform(x, generator, 1, h, w) < density).to(x.dtype)
    flakes = F.interpolate(flakes, x.shape[2:], mode='bilinear', align_corners=False)
    angle = math.pi * (0.3 + 0.4 * _uniform(x, generator))
    pale = torch.lerp(x, x.mean(1, keepdim=True) * 0.5 + 0.5, 5 * density)
    return pale + 1.5 * _along(flakes, 3 * _unit(x), angle)


def _brightness(x: Tensor, added: float, generator: torch.Generator) -> Tensor:
    """Add to the value of each pixel (its largest channel), keeping hue and saturation."""
    value = x.amax(1, keepdim=True)
    brighter = (value + added).clamp_max(1)
    return torch.where(value > 0, x * brighter / value.clamp_min(1e-6), brighter)


def _elastic_transform(x: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    """Displace pixels smoothly at random; `shift` is the standard deviation of each coordinate."""
    h, w = x.shape[2:]
    field = _smooth(2 * _uniform(x, generator, 2, h, w) - 1, 2 * _unit(x))
    field = field * (shift * _unit(x) / field.std((2, 3), keepdim=True).clamp_min(1e-6))
    return _sample(x, _grid(x) + field.permute(0, 2, 3, 1) * x.new_tensor([2 / w, 2 / h]))


def _pixelate(x: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """Average over blocks, `kept` of them for every 32 pixels of the shorter side."""
    small = [min(size, max(1, round(size * kept / (32 * _unit(x))))) for size in x.shape[2:]]
    return F.interpolate(F.interpolate(x, small, mode='area'), x.shape[2:], mode='nearest-exact')


# -- JPEG --------------------------------------------------------------------------------------------------------------
# The tables of the standard's annex K, at quality 50.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99)
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32)


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress uint8 images [B, 1 or 3, H, W] by libjpeg's default method at quality 1 to 100, and decode them."""
    # without entropy coding; libjpeg computes in integers, so a few coefficients round differently from Pillow's
    if images.shape[1] == 1:
        return _plane(images.float(), _table(_LUMA, quality, images.device)).to(torch.uint8)
    if images.shape[1] != 3:
        raise ZooError(f'JPEG holds 1 or 3 channels, not {images.shape[1]}: give grey or colour images.')
    h, w = images.shape[2:]
    red, green, blue = images.float().split(1, 1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue + 0.5).floor_()
    cb = 128.49 - 0.168735892 * red - 0.331264108 * green + 0.5 * blue              # halves go down
    cr = 128.49 + 0.5 * red - 0.418687589 * green - 0.081312411 * blue
    luma = _plane(luma, _table(_LUMA, quality, images.device))
    chroma = _plane(_halve(torch.cat([cb, cr], 1).floor_()), _table(_CHROMA, quality, images.device))
    cb, cr = (_double(chroma[..., :(w + 1) // 2])[:, :, :h, :w] - 128).split(1, 1)
    red, blue = (1.402 * cr + 0.5).floor_(), (1.772 * cb + 0.5).floor_()
    green = (-0.344136286 * cb - 0.714136286 * cr + 0.5).floor_()
    return torch.cat([luma + red, luma + green, luma + blue], 1).clamp_(0, 255).to(torch.uint8)


def _table(values: tuple[int, ...], quality: int, device: torch.device) -> Tensor:
    """Return the quantization steps [8, 8]."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = [min(255, max(1, (v * percent + 50) // 100)) for v in values]
    return torch.tensor(steps, dtype=torch.float32, device=device).view(8, 8)


def _plane(plane: Tensor, table: Tensor) -> Tensor:
    """Quantize the cosine transform of integers [B, C, H, W], and transform back to integers."""
    b, c, h, w = plane.shape
    padded = F.pad(plane - 128, (0, -w % 8, 0, -h % 8), mode='replicate')
    n = torch.arange(8, dtype=torch.float64)
    cosines = (math.pi / 8 * (n + 0.5) * n[:, None]).cos() / 2
    cosines[0] /= math.sqrt(2)
    cosines = cosines.float().to(plane.device)      # orthonormal; rows are frequencies
    blocks = padded.view(b, c, -1, 8, padded.shape[3] // 8, 8).transpose(3, 4)      # [B, C, H/8, W/8, 8, 8]
    waves = cosines @ blocks @ cosines.T / table
    waves = waves.abs().add_(0.5).floor_() * waves.sign() * table                   # halves away from 0
    blocks = cosines.T @ waves @ cosines
    return (blocks.transpose(3, 4).reshape(padded.shape)[:, :, :h, :w] + 128.5).floor_().clamp_(0, 255)


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


# family, operation and its strengths by severity; named as the files of the official sets
_Operation = Callable[[Tensor, float, torch.Generator], Tensor]
_CORRUPTIONS: dict[str, tuple[str, _Operation, tuple[float, ...]]] = {
    'gaussian_noise': ('noise', lambda x, deviation, generator: x + deviation * torch.randn(
        x.shape, generator=generator, device=x.device), (0.04, 0.07, 0.10, 0.13, 0.17)),
    'shot_noise': ('noise', _shot_noise, (250., 100., 50., 30., 18.)),
    'impulse_noise': ('noise', _impulse_noise, (0.01, 0.03, 0.06, 0.10, 0.16)),
    'defocus_blur': ('blur', _defocus_blur, (0.6, 0.9, 1.2, 1.6, 2.1)),
    'glass_blur': ('blur', _glass_blur, (0.6, 0.8, 1.0, 1.3, 1.7)),
    'motion_blur': ('blur', lambda x, length, generator: _along(
        x, length * _unit(x), math.pi * _uniform(x, generator)), (1.5, 2.5, 3.5, 5., 7.)),
    'zoom_blur': ('blur', _zoom_blur, (1.06, 1.12, 1.18, 1.26, 1.35)),
    'snow': ('weather', _snow, (0.010, 0.020, 0.035, 0.050, 0.070)),
    'frost': ('weather', _frost, (0.35, 0.45, 0.55, 0.70, 0.90)),
    'fog': ('weather', _fog, (0.3, 0.45, 0.6, 0.72, 0.84)),
    'brightness': ('weather', _brightness, (0.08, 0.15, 0.23, 0.31, 0.40)),
    'contrast': ('digital', lambda x, factor, _: torch.lerp(x.mean((2, 3), keepdim=True), x, factor),
                 (0.7, 0.5, 0.35, 0.22, 0.12)),
    'elastic_transform': ('digital', _elastic_transform, (0.5, 0.75, 1.0, 1.3, 1.7)),
    'pixelate': ('digital', _pixelate, (24., 19., 16., 12., 9.)),
    'jpeg_compression': ('digital', lambda x, quality, _: jpeg(
        (x * 255).round_().to(torch.uint8), int(quality)).to(torch.float32) / 255, (80., 60., 40., 25., 12.)),
}
CORRUPTIONS = tuple(_CORRUPTIONS)
FAMILY = {name: family for name, (family, _, _) in _CORRUPTIONS.items()}
