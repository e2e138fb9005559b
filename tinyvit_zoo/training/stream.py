"""The recipe's augmentation image by image, for sets that do not fit in memory: timm's and torchvision's transforms."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from ..recipes import Recipe

_POLICIES = {policy.value: policy for policy in transforms.AutoAugmentPolicy}  # 'cifar10', 'svhn', 'imagenet'


def training_transform(recipe: Recipe, cfg: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """From a Pillow image to a normalised tensor, as `data.augment.Augment` does it for a batch."""
    size = tuple(cfg['input_size'][1:])
    steps: list[Any]
    if recipe.crop_scale:
        steps = [RandomResizedCropAndInterpolation(
            size, recipe.crop_scale, recipe.crop_ratio, interpolation=recipe.crop_interpolation)]
    else:
        steps = [transforms.Resize(min(size), transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size),
                 transforms.RandomCrop(size, recipe.crop_padding)]
    steps.append(transforms.RandomHorizontalFlip(recipe.flip))
    if recipe.auto_augment in _POLICIES:
        steps.append(transforms.AutoAugment(_POLICIES[recipe.auto_augment]))
    elif recipe.auto_augment:
        fill = tuple(round(255 * value) for value in cfg['mean'])
        steps.append(rand_augment_transform(
            recipe.auto_augment, {'translate_const': int(min(size) * 0.45), 'img_mean': fill}))
    if recipe.color_jitter:
        steps.append(transforms.ColorJitter(*recipe.color_jitter))
    steps += [transforms.ToTensor(), transforms.Normalize(cfg['mean'], cfg['std'])]
    if recipe.erase:
        steps.append(RandomErasing(
            recipe.erase, *recipe.erase_area, *recipe.erase_aspect, mode=recipe.erase_mode, device='cpu'))
    return transforms.Compose(steps)


def evaluation_transform(cfg: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    return create_transform(
        cfg['input_size'], interpolation=cfg['interpolation'], mean=cfg['mean'], std=cfg['std'],
        crop_pct=cfg['crop_pct'])
