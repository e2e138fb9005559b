"""Several views of each image, for pre-training: made on the device, those of one size as one batch.

A view is what `Augment` makes of an image: each view of each image has its own crop, its own colours, and so on.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ZooError
from .batched import Augment

JITTER, JITTER_PROB, GREY, BLUR_SIGMA = (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, (0.1, 2.)
WHOLE = ((1., 0.), (0.1, 0.2))     # how likely the first and the second whole view are blurred, and solarised
_LOCAL_BLUR = 0.5
_COLOURS: dict[str, Any] = dict(color_jitter=JITTER, color_jitter_prob=JITTER_PROB, grey=GREY, blur_sigma=BLUR_SIGMA)


class Views:
    """Each argument is a size: how many views each augmentation makes. uint8 images -> [V, B, C, H, W] for each."""

    def __init__(self, *sizes: Sequence[tuple[int, Augment]]) -> None:
        self.sizes = sizes

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(
            torch.cat([augment(images.repeat(count, 1, 1, 1), generator) for count, augment in size])
            .unflatten(0, (-1, len(images)))
            for size in self.sizes)

    def compile(self) -> None:
        for size in self.sizes:
            for _, augment in size:
                augment.compile()


def contrastive_views(
        img_size: tuple[int, int], mean: Sequence[float], std: Sequence[float], *, flip: float = 0.5,
        crop_scale: tuple[float, float] = (0.08, 1.), interpolation: str = 'bicubic',
) -> Views:
    """MoCo-v3's two: the first one blurred, the second one now and then, or solarised."""
    return Views([
        (1, Augment(img_size, mean, std, flip=flip, crop_scale=crop_scale, interpolation=interpolation, blur=blur,
                    solarize=solarize, **_COLOURS))
        for blur, solarize in WHOLE])


def low_resolution_views(
        img_size: tuple[int, int], mean: Sequence[float], std: Sequence[float], *, flip: float = 0.5,
        crop_scale: tuple[float, float] = (0.7, 1.), local_scale: tuple[float, float] = (0.2, 0.5),
        local_views: int = 8, local_size: tuple[int, int] | None = None, interpolation: str = 'bicubic',
) -> Views:
    """Self-distillation's: two of the whole size, and smaller ones (by default of half of it) that show less."""
    if local_views < 0:
        raise ZooError(f'local_views is {local_views}: expected 0 or more.')
    whole = contrastive_views(img_size, mean, std, flip=flip, crop_scale=crop_scale, interpolation=interpolation)
    if not local_views:
        return whole
    size = local_size or (img_size[0] // 2, img_size[1] // 2)
    return Views(*whole.sizes, [(local_views, Augment(
        size, mean, std, flip=flip, crop_scale=local_scale, interpolation=interpolation, blur=_LOCAL_BLUR,
        **_COLOURS))])
