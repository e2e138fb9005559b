"""Augment whole batches on the device they are on, every image with its own parameters.

All random numbers come from the generator given: its state is all a run needs to resume to the same bits.
"""
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ZooError
from ..recipes.ranges import FROM_0, POSITIVE, SHARE, Choice
from . import geometry, ops
from .ops import Constant, Op
from .policies import ColorJitter, Policy, Single, choose_kernel, make_policy
from .spec import AugmentSpec

Range = tuple[float, float]
_WIDER = 257                # 65535 / 255: images of 16 bits
_ATTEMPTS = 10              # timm's, to draw a box that fits
_CHUNK_CPU = 1 << 20        # pixel values at once, as the cache holds
_CHUNK = 1 << 26            # elsewhere


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn uint8 [B, C, H, W] into float32: (x / 255 - mean) / std. One mean and std serve any number of channels.

    Images of 16 bits are int32, of which 65535 is 1.
    """
    scale, bias = _affine(tuple(mean), tuple(std))
    images = images / _WIDER if images.dtype == torch.int32 else images
    return images.to(torch.float32).mul_(scale.on(images.device)).add_(bias.on(images.device))


@lru_cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Constant, Constant]:
    """Return the factor and the offset that normalize 0..255, [C, 1, 1]; ZooError where they cannot."""
    if len(mean) != len(std) or not min(std) > 0:
        raise ZooError(f'Mean {mean} and deviation {std} cannot normalize: expected equal lengths and deviations above '
                       f'0.')
    scale, bias = [[[1 / (255 * s)]] for s in std], [[[-m / s]] for m, s in zip(mean, std, strict=True)]
    return Constant(scale), Constant(bias)


class Augment:
    """uint8 [B, C, H, W] to float32 [B, C, *img_size]: crop, flip, policy, jitter, grey, blur, solarize, erasing.

    Erasing follows normalization. Grey is the luma of three channels, else the mean; the hue needs 1 or 3 channels.
    """

    def __init__(self, spec: AugmentSpec) -> None:
        SHARE.check(color_jitter_prob=spec.color_jitter_prob, grey=spec.grey, blur=spec.blur, solarize=spec.solarize)
        self.channels, self.normal = len(spec.mean), _affine(tuple(spec.mean), tuple(spec.std))
        self.crop = _Crop(spec)
        self.policies: list[Policy] = []
        if spec.auto_augment:
            fill = [min(255., round(255 * v)) for v in spec.mean]
            self.policies.append(make_policy(spec.auto_augment, spec.img_size, spec.interpolation, fill))
        if spec.color_jitter and any(spec.color_jitter):
            self.policies.append(ColorJitter(spec.color_jitter, spec.color_jitter_prob))
        singles = (Single(Op.COLOR, spec.grey), Single(Op.BLUR, spec.blur, *_range('blur_sigma', spec.blur_sigma)),
                   Single(Op.SOLARIZE, spec.solarize, 128., 128.))
        self.policies += [single for single in singles if single.prob]
        self.erase = _Erase(spec)
        self.dense: bool | None = None
        self._pixels = self._augment

    def compile(self) -> None:
        """Fuse the many small kernels into few by torch.compile, for accelerators."""
        self.dense = True
        self._pixels = torch.compile(self._augment, dynamic=False)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self._check(images, generator)
        rows = [self.crop.uniforms + sum(p.uniforms for p in self.policies), self.erase.uniforms]
        chunk = max(1, (_CHUNK_CPU if images.is_cpu else _CHUNK) // max(1, images[:1].numel()))
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            u, erasing = torch.rand(sum(rows), len(images), generator=generator, device=images.device).split(rows)
            chunks = zip(images.contiguous().split(chunk), u.split(chunk, 1), strict=True)
            parts = [self._pixels(part, numbers) for part, numbers in chunks]
            return self.erase(parts[0] if len(parts) == 1 else torch.cat(parts), erasing, generator, self.dense)

    def _augment(self, images: Tensor, u: Tensor) -> Tensor:
        own, *others = u.split([self.crop.uniforms, *(p.uniforms for p in self.policies)])
        images = self.crop(images, own)
        for policy, numbers in zip(self.policies, others, strict=True):
            for layer in policy.layers(numbers):
                images = ops.apply(images, layer, policy.known, self.dense)
        scale, bias = (v.on(images.device) for v in self.normal)
        images = images / _WIDER if images.dtype == torch.int32 else images
        return images.to(torch.float32).mul_(scale).add_(bias)

    def _check(self, images: Tensor, generator: torch.Generator) -> None:
        if images.dtype not in (torch.uint8, torch.int32) or images.ndim != 4:
            raise ZooError(f'Augmentation takes uint8 images [B, C, H, W], got {images.dtype} {list(images.shape)}.')
        if self.channels not in (1, images.shape[1]):
            raise ZooError(f'Images of {images.shape[1]} channels do not fit a mean of {self.channels}.')
        if generator.device.type != images.device.type:
            raise ZooError(f'The generator is on {generator.device}, expected the device of images, {images.device}.')


def _sides(areas: Tensor, aspects: Tensor, area: Range, aspect: Range, pixels: int) -> tuple[Tensor, Tensor]:
    """Return (long, short) sides of boxes of `area` times `pixels`, the logarithm of long / short uniform."""
    low, high = math.log(aspect[0]), math.log(aspect[1])
    size = (areas * (area[1] - area[0]) + area[0]) * pixels
    ratio = (aspects * (high - low) + low).exp()
    return (size * ratio).sqrt().round(), (size / ratio).sqrt().round()


def _first(fits: Tensor, *values: Tensor) -> list[Tensor]:
    """Select from values [attempts, B] those of the first attempt that fits, or of attempt 0 if none does."""
    attempt = fits.to(torch.uint8).argmax(0, keepdim=True)
    return [v.gather(0, attempt)[0] for v in values]


class _Crop:
    """Cut, resize and flip each image."""
    uniforms = 4 + 2 * _ATTEMPTS

    def __init__(self, spec: AugmentSpec) -> None:
        SHARE.check(flip=spec.flip)
        Choice(('bilinear', 'bicubic', 'random')).check(interpolation=spec.interpolation)
        self.img_size, self.flip, self.interpolation = spec.img_size, spec.flip, spec.interpolation
        self.padding, self.ratio = spec.crop_padding, _range('crop_ratio', spec.crop_ratio)
        self.scale = spec.crop_scale and _range('crop_scale', spec.crop_scale, 1.)
        if self.padding < 0 or (self.padding and self.scale):
            raise ZooError(f'crop_padding {self.padding}, crop_scale {self.scale}: expected one of them, 0 or more.')

    def __call__(self, images: Tensor, u: Tensor) -> Tensor:
        size = images.shape[2], images.shape[3]
        flip, kernel = u[0] < self.flip, choose_kernel(self.interpolation, u[1])
        if self.scale:
            return geometry.resized_crop(images, self._boxes(u[2:], size, self.scale), self.img_size, kernel, flip)
        if self.padding:
            room = [have + 2 * self.padding - want for have, want in zip(size, self.img_size, strict=True)]
            if min(room) < 0:
                raise ZooError(f'{size} padded by {self.padding} is too small for a crop of {self.img_size}: pad more.')
            top, left = ((v * (r + 1)).long() for v, r in zip(u[2:4], room, strict=True))
            return geometry.crop(images, top, left, self.img_size, self.padding, flip)
        if size != self.img_size:
            whole = [torch.full_like(u[0], v) for v in (0, 0, *size)]
            return geometry.resized_crop(images, whole, self.img_size, kernel, flip)
        return torch.where(flip[:, None, None, None], images.flip(3), images) if self.flip else images

    def _boxes(self, u: Tensor, size: tuple[int, int], scale: Range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw boxes; where no attempt fits, use the largest one in the middle with an allowed ratio, as timm."""
        h, w = size
        widths, heights = _sides(u[2:2 + _ATTEMPTS], u[2 + _ATTEMPTS:], scale, self.ratio, h * w)
        fits = (heights <= h) & (widths <= w)
        height, width = _first(fits, heights, widths)
        low, high = self.ratio
        middle_h = round(w / low) if w / h < low else h
        middle_w = round(h * high) if w / h > high else w
        some = fits.any(0)
        height, width = torch.where(some, height, middle_h), torch.where(some, width, middle_w)
        top = torch.where(some, (u[0] * (h - height + 1)).floor(), (h - middle_h) // 2)
        left = torch.where(some, (u[1] * (w - width + 1)).floor(), (w - middle_w) // 2)
        return top, left, height, width


class _Erase:
    """Fill a rectangle of normalized images with normal noise ('pixel') or 0 ('const'), as timm."""

    def __init__(self, spec: AugmentSpec) -> None:
        SHARE.check(erase=spec.erase)
        Choice(('pixel', 'const')).check(erase_mode=spec.erase_mode)
        self.prob, self.mode = spec.erase, spec.erase_mode
        self.area, self.aspect = _range('erase_area', spec.erase_area, 1.), _range('erase_aspect', spec.erase_aspect)
        self.uniforms = 3 + 2 * _ATTEMPTS if self.prob else 0

    def __call__(self, x: Tensor, u: Tensor, generator: torch.Generator, dense: bool | None) -> Tensor:
        if not self.prob:
            return x
        h, w = x.shape[2:]
        heights, widths = _sides(u[3:3 + _ATTEMPTS], u[3 + _ATTEMPTS:], self.area, self.aspect, h * w)
        fits = (heights < h) & (widths < w)
        height, width = _first(fits, heights, widths)
        on = fits.any(0) & (u[0] < self.prob)
        tops, lefts = (u[1] * (h - height + 1)).floor(), (u[2] * (w - width + 1)).floor()
        holes = on[:, None, None, None] & _rectangles(tops, lefts, height, width, h, w)
        holes = holes.view(torch.uint8).to(x.dtype)         # fast on the CPU, as lerp and the product are
        if self.mode == 'const':
            return x.mul_(1 - holes)
        if not x.is_cpu or dense:
            return torch.lerp(x, torch.randn(x.shape, generator=generator, device=x.device), holes)
        rows = on.nonzero().squeeze(1)
        noise = torch.randn(len(rows), *x.shape[1:], generator=generator)
        return x.index_copy_(0, rows, torch.lerp(x[rows], noise, holes[rows]))


def _rectangles(top: Tensor, left: Tensor, height: Tensor, width: Tensor, h: int, w: int) -> Tensor:
    """Return [B, 1, h, w], set inside each rectangle."""
    row, column = torch.arange(h, device=top.device), torch.arange(w, device=top.device)
    rows = (row >= top[:, None]) & (row < (top + height)[:, None])
    columns = (column >= left[:, None]) & (column < (left + width)[:, None])
    return rows[:, None, :, None] & columns[:, None, None, :]


class Mix:
    """timm's mixup and cutmix of a batch with its reverse; `mode` 'batch' draws once, 'elem' for each image."""

    def __init__(self, num_classes: int, mixup: float = 0., cutmix: float = 0., prob: float = 1.,
                 switch_prob: float = .5, mode: str = 'batch', smoothing: float = 0.) -> None:
        FROM_0.check(mixup=mixup, cutmix=cutmix)
        SHARE.check(prob=prob, switch_prob=switch_prob, smoothing=smoothing)
        Choice(('batch', 'elem')).check(mode=mode)
        self.num_classes, self.mixup, self.cutmix, self.smoothing = num_classes, mixup, cutmix, smoothing
        self.prob, self.switch_prob, self.mode = prob, switch_prob, mode

    def __call__(self, x: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images and their soft targets [B, num_classes]; without mixing these are only smoothed."""
        targets = smoothed(labels, self.num_classes, self.smoothing)
        if not self.mixup and not self.cutmix:
            return x, targets
        count = 1 if self.mode == 'batch' else len(x)
        u = torch.rand(4, count, generator=generator, device=x.device)
        cut = u[0] < (self.switch_prob if self.mixup and self.cutmix else float(self.cutmix > 0))
        alphas = (torch.full((count, 2), alpha or 1., device=x.device) for alpha in (self.cutmix, self.mixup))
        cut_lam, mix_lam = (torch._sample_dirichlet(alpha, generator)[:, 0] for alpha in alphas)
        lam = torch.where(u[1] < self.prob, torch.where(cut, cut_lam, mix_lam), 1.)
        return mix(x, targets, lam, cut, (u[2] * x.shape[2]).floor(), (u[3] * x.shape[3]).floor())


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return soft targets [B, C] of labels [B], or of [B, C] of 0 and 1, which move towards 0.5; as timm's."""
    if labels.ndim == 2:
        return labels.float() * (1 - smoothing) + smoothing / 2
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, device=labels.device)
    return targets.scatter_(1, labels[:, None], 1 - smoothing + off)


def mix(x: Tensor, targets: Tensor, lam: Tensor, cut: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    """Mix a batch with its reverse: `lam` of the image, 1 - lam of the other, all parameters [B] or [1].

    Where `cut` is set, paste a rectangle of the other around (row, column), whose area inside the image sets `lam`.
    """
    h, w = x.shape[2:]
    spans = []
    for centre, size in ((row, h), (column, w)):
        cut_size = (size * (1 - lam).sqrt()).floor()
        start = (centre - (cut_size / 2).floor()).clamp(0, size)
        spans.append((start, (centre + ((cut_size + 1) / 2).floor()).clamp(0, size) - start))
    (top, height), (left, width) = spans
    lam = torch.where(cut, 1 - height * width / (h * w), lam)
    outside = ~_rectangles(top, left, height, width, h, w)
    weight = torch.where(cut[:, None, None, None], outside.to(x.dtype), lam.to(x.dtype)[:, None, None, None])
    return torch.lerp(x.flip(0), x, weight), torch.lerp(targets.flip(0), targets, lam[:, None])


def _range(name: str, bounds: Range, most: float = math.inf) -> Range:
    POSITIVE.of(2).check(**{name: bounds})
    if not bounds[0] <= bounds[1] <= most:
        raise ZooError(f'{name} is {bounds}, expected the smaller number first{", at most 1" if most == 1 else ""}.')
    return bounds
