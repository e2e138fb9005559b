"""Make one or several views of each image of a uint8 batch, each with its own crop and colours.

Float batches come from the transform that `pillow` returns and are only unpacked. Of images of 16 bits, or of other
channels than grey and RGB, the colours stay as they are, and nothing is blurred.
"""
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.channels import is_deep
from .batched import Augment
from .spec import AugmentSpec

_COLOURS: dict[str, Any] = dict(
    color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_prob=0.8, grey=0.2, blur_sigma=(0.1, 2.))
# the first and the second whole view
_WHOLE: tuple[dict[str, Any], ...] = dict(blur=1., solarize=0.), dict(blur=0.1, solarize=0.2)
_UNCOLOURED: dict[str, Any] = dict(color_jitter=None, grey=0., blur=0., solarize=0.)


class Views:
    """Each argument is a size: pairs of a spec and of how many views it makes. Returns [V, B, C, H, W] for each."""

    def __init__(self, *sizes: Sequence[tuple[int, AugmentSpec]]) -> None:
        self.specs = sizes
        self.sizes, self.deep = ([[(count, Augment(replace(spec, **less))) for count, spec in size] for size in sizes]
                                 for less in ({}, _UNCOLOURED))

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        if images.is_floating_point():      # [B, V, C, H, W], from the transform of `pillow`
            return (images.transpose(0, 1),)
        return tuple(
            torch.cat([augment(images.repeat(count, 1, 1, 1), generator) for count, augment in size])
            .unflatten(0, (-1, len(images)))
            for size in (self.deep if is_deep(images.shape[1], images.dtype) else self.sizes))

    def pillow(self) -> Callable[[Any], Tensor] | None:
        """Make the transform from a Pillow image to [V, C, H, W]; None for views of several sizes."""
        return partial(_stack, [spec.pillow() for _, spec in self.specs[0]]) if len(self.specs) == 1 else None

    def compile(self) -> None:
        for size in (*self.sizes, *self.deep):
            for _, augment in size:
                augment.compile()


class OneView(Views):
    """A single view: uint8, or int32 of 16 bits, [B, C, H, W] to float32 of the same shape."""

    def __init__(self, spec: AugmentSpec) -> None:
        super().__init__([(1, spec)])

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return (self.sizes[0][0][1](images, generator) if not images.is_floating_point() else images,)

    def pillow(self) -> Callable[[Any], Tensor] | None:
        return self.specs[0][0][1].pillow()


def _stack(views: Sequence[Callable[[Any], Tensor]], image: Any) -> Tensor:
    return torch.stack([view(image) for view in views])


def contrastive_views(spec: AugmentSpec) -> Views:
    """Make MoCo-v3's two views: the first one blurred, the second one sometimes blurred or solarized."""
    return Views([(1, replace(spec, **_COLOURS, **whole)) for whole in _WHOLE])


def low_resolution_views(spec: AugmentSpec, count: int = 8, scale: tuple[float, float] = (0.2, 0.5),
                         size: tuple[int, int] | None = None) -> Views:
    """Make self-distillation's views: two whole ones, and `count` of `scale`, by default of half the size."""
    whole = contrastive_views(spec)
    half = size or (spec.img_size[0] // 2, spec.img_size[1] // 2)
    local = replace(spec, img_size=half, crop_scale=scale, blur=0.5, **_COLOURS)
    return Views(*whole.specs, [(count, local)]) if count else whole
