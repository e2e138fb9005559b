"""Specify the augmentation of a training, for batches on the device and for single Pillow images."""
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from PIL import Image, ImageFilter, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision import transforms

from ..recipes import BaseRecipe

LEARNED = {policy.value: policy for policy in transforms.AutoAugmentPolicy}  # 'cifar10', 'svhn', 'imagenet'


@dataclass(frozen=True)
class AugmentSpec:
    """The arguments of `batched.Augment`; Pillow images are augmented from the same distribution, by other draws.

    Without a crop, images of another size are resized whole. `auto_augment` is 'cifar10', 'svhn', 'imagenet'
    (torchvision's) or timm's 'rand-...'; `blur_sigma` is Pillow's radius.
    """
    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = 'bilinear'
    flip: float = 0.
    crop_padding: int = 0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    auto_augment: str = ''
    color_jitter: tuple[float, float, float, float] | None = None
    color_jitter_prob: float = 1.
    grey: float = 0.
    blur: float = 0.
    blur_sigma: tuple[float, float] = (0.1, 2.)
    solarize: float = 0.
    erase: float = 0.
    erase_mode: str = 'pixel'
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)

    @classmethod
    def of(cls, recipe: BaseRecipe, cfg: Mapping[str, Any]) -> 'AugmentSpec':
        """Make the spec of a recipe, at the size and with the normalization statistics of `cfg`."""
        named = {field.name: getattr(recipe, field.name) for field in fields(cls) if hasattr(recipe, field.name)}
        return cls(**{**named, 'img_size': tuple(cfg['input_size'][1:]), 'mean': cfg['mean'], 'std': cfg['std'],
                      'interpolation': recipe.crop_interpolation})

    def pillow(self) -> Callable[[Any], Tensor]:
        """Make the transform from a Pillow image to a normalized tensor: timm's and torchvision's steps."""
        steps: list[Any] = [
            transforms.Resize(min(self.img_size), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(self.img_size), transforms.RandomCrop(self.img_size, self.crop_padding)]
        if self.crop_scale:
            steps = [RandomResizedCropAndInterpolation(
                self.img_size, self.crop_scale, self.crop_ratio, interpolation=self.interpolation)]
        steps.append(transforms.RandomHorizontalFlip(self.flip))
        if self.auto_augment:
            steps.append(policy(self.auto_augment, min(self.img_size), self.mean))
        if self.color_jitter:
            jitter = transforms.ColorJitter(*self.color_jitter)
            always = self.color_jitter_prob == 1
            steps.append(jitter if always else transforms.RandomApply([jitter], self.color_jitter_prob))
        if self.grey or self.blur or self.solarize:
            steps += [transforms.RandomGrayscale(self.grey),
                      transforms.RandomApply([partial(blur, sigma=self.blur_sigma)], self.blur),
                      transforms.RandomApply([ImageOps.solarize], self.solarize)]
        steps += [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        if self.erase:
            steps.append(RandomErasing(
                self.erase, *self.erase_area, *self.erase_aspect, mode=self.erase_mode, device='cpu'))
        return transforms.Compose(steps)


def policy(name: str, size: int, mean: Sequence[float]) -> Any:
    """Make torchvision's AutoAugment by its name, or timm's RandAugment by its grammar."""
    if name in LEARNED:
        return transforms.AutoAugment(LEARNED[name])
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
    """Make the preprocessing of weights with this cfg; without normalization it returns uint8."""
    return create_transform(cfg['input_size'], interpolation=cfg['interpolation'], mean=cfg['mean'], std=cfg['std'],
                            crop_pct=cfg['crop_pct'], crop_mode=cfg.get('crop_mode'), normalize=normalize)
