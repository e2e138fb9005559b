"""Transforms of Pillow images: timm's and torchvision's, and what they lack."""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageFilter
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision import transforms

_POLICIES = {policy.value: policy for policy in transforms.AutoAugmentPolicy}  # 'cifar10', 'svhn', 'imagenet'


def policy(name: str, size: int, mean: Sequence[float]) -> Any:
    """Make torchvision's AutoAugment by its name, or timm's RandAugment by its grammar."""
    if name in _POLICIES:
        return transforms.AutoAugment(_POLICIES[name])
    fill = tuple(round(255 * value) for value in mean)
    augment = rand_augment_transform(name, {'translate_const': int(size * 0.45), 'img_mean': fill})
    for op in augment.ops:
        if op.name.startswith('Posterize'):
            op.aug_fn = posterize
    return augment


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """As Pillow's, and black for 0 bits, which newer Pillows refuse and timm asks for at its strongest."""
    kept = 255 & -(1 << max(0, 8 - bits))
    return image.point([level & kept for level in range(256)] * len(image.getbands()))


def blur(image: Image.Image, sigma: tuple[float, float]) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*sigma)))


def evaluation_transform(cfg: Mapping[str, Any], normalize: bool = True) -> Callable[[Any], Tensor]:
    """Make the transform that weights with this cfg want; not normalized, it returns bytes."""
    return create_transform(
        cfg['input_size'], interpolation=cfg['interpolation'], mean=cfg['mean'], std=cfg['std'],
        crop_pct=cfg['crop_pct'], crop_mode=cfg.get('crop_mode'), normalize=normalize)
