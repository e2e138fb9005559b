"""The recipe's augmentation image by image, for sets that do not fit in memory: timm's and torchvision's transforms."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
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
        steps.append(_rand_augment(recipe.auto_augment, min(size), cfg['mean']))
    if recipe.color_jitter:
        steps.append(transforms.ColorJitter(*recipe.color_jitter))
    steps += [transforms.ToTensor(), transforms.Normalize(cfg['mean'], cfg['std'])]
    if recipe.erase:
        steps.append(RandomErasing(
            recipe.erase, *recipe.erase_area, *recipe.erase_aspect, mode=recipe.erase_mode, device='cpu'))
    return transforms.Compose(steps)


def _rand_augment(policy: str, size: int, mean: Any) -> Any:
    """timm's."""
    fill = tuple(round(255 * value) for value in mean)
    augment = rand_augment_transform(policy, {'translate_const': int(size * 0.45), 'img_mean': fill})
    for op in augment.ops:
        if op.name.startswith('Posterize'):
            op.aug_fn = posterize
    return augment


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Pillow's, and black for no bits, which newer Pillows refuse and timm asks for at its strongest."""
    kept = 255 & -(1 << max(0, 8 - bits))
    return image.point([level & kept for level in range(256)] * len(image.getbands()))


def evaluation_transform(cfg: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    return create_transform(
        cfg['input_size'], interpolation=cfg['interpolation'], mean=cfg['mean'], std=cfg['std'],
        crop_pct=cfg['crop_pct'], crop_mode=cfg.get('crop_mode'))
