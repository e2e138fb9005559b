"""The recipe's augmentation image by image, for sets that do not fit in memory: timm's and torchvision's transforms."""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from ..recipes import BaseRecipe, Pretraining, Recipe
from .views import BLUR_SIGMA, GREY, JITTER, JITTER_PROB, WHOLE

_POLICIES = {policy.value: policy for policy in transforms.AutoAugmentPolicy}  # 'cifar10', 'svhn', 'imagenet'


def training_transform(recipe: Recipe, cfg: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """From a Pillow image to a normalised tensor, as `data.augment.Augment` does it for a batch."""
    steps = _crop_and_flip(recipe, tuple(cfg['input_size'][1:]))
    size = min(cfg['input_size'][1:])
    if recipe.auto_augment in _POLICIES:
        steps.append(transforms.AutoAugment(_POLICIES[recipe.auto_augment]))
    elif recipe.auto_augment:
        steps.append(_rand_augment(recipe.auto_augment, size, cfg['mean']))
    if recipe.color_jitter:
        steps.append(transforms.ColorJitter(*recipe.color_jitter))
    steps += [transforms.ToTensor(), transforms.Normalize(cfg['mean'], cfg['std'])]
    if recipe.erase:
        steps.append(RandomErasing(
            recipe.erase, *recipe.erase_area, *recipe.erase_aspect, mode=recipe.erase_mode, device='cpu'))
    return transforms.Compose(steps)


def pretraining_transform(recipe: Pretraining, cfg: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """One view: crop, flip, colours, and no more."""
    steps = _crop_and_flip(recipe, tuple(cfg['input_size'][1:]))
    if recipe.color_jitter:
        steps.append(transforms.ColorJitter(*recipe.color_jitter))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(cfg['mean'], cfg['std'])])


class TwoViews:
    """MoCo-v3's, as `data.views.contrastive_views` makes them: a Pillow image to [2, C, H, W]."""

    def __init__(self, recipe: Pretraining, cfg: Mapping[str, Any]) -> None:
        jitter = transforms.RandomApply([transforms.ColorJitter(*JITTER)], JITTER_PROB)
        end = [transforms.ToTensor(), transforms.Normalize(cfg['mean'], cfg['std'])]
        self.views = [
            transforms.Compose([
                *_crop_and_flip(recipe, tuple(cfg['input_size'][1:])), jitter, transforms.RandomGrayscale(GREY),
                transforms.RandomApply([_blur], blur), transforms.RandomApply([ImageOps.solarize], solarize), *end])
            for blur, solarize in WHOLE]

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([view(image) for view in self.views])


def _blur(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(*BLUR_SIGMA)))


def _crop_and_flip(recipe: BaseRecipe, size: tuple[int, ...]) -> list[Any]:
    flip = transforms.RandomHorizontalFlip(recipe.flip)
    if recipe.crop_scale:
        crop = RandomResizedCropAndInterpolation(
            size, recipe.crop_scale, recipe.crop_ratio, interpolation=recipe.crop_interpolation)
        return [crop, flip]
    return [transforms.Resize(min(size), transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(size),
            transforms.RandomCrop(size, recipe.crop_padding), flip]


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


def evaluation_transform(cfg: Mapping[str, Any], normalize: bool = True) -> Callable[[Any], Tensor]:
    """What the weights want of an image; not normalised, it is of bytes."""
    return create_transform(
        cfg['input_size'], interpolation=cfg['interpolation'], mean=cfg['mean'], std=cfg['std'],
        crop_pct=cfg['crop_pct'], crop_mode=cfg.get('crop_mode'), normalize=normalize)
