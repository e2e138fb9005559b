"""The views of an image are what torchvision and Pillow make of it; their number, sizes and colours are the papers'."""
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from augment_cases import MEAN, STD, batch, generator, to_pil
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment.batched import Augment
from tinyvit_zoo.augment.ops import Op
from tinyvit_zoo.augment.spec import AugmentSpec
from tinyvit_zoo.augment.views import Views, contrastive_views, low_resolution_views

BICUBIC = transforms.InterpolationMode.BICUBIC
JITTERS = {Op.BRIGHTNESS: TF.adjust_brightness, Op.CONTRAST: TF.adjust_contrast, Op.COLOR: TF.adjust_saturation,
           Op.HUE: TF.adjust_hue}


def spec(*size: int, scale: tuple[float, float] = (0.7, 1.), flip: float = 0.5) -> AugmentSpec:
    return AugmentSpec(size or (32, 32), MEAN, STD, 'bicubic', flip, crop_scale=scale)


def views_of(kind: str, size: tuple[int, int], flip: float = 0.5) -> Views:
    if kind == 'contrastive':
        return contrastive_views(spec(*size, scale=(0.08, 1.), flip=flip))
    return low_resolution_views(spec(*size, flip=flip))


def augmentations(views: Views) -> list[Augment]:
    return [augment for size in views.sizes for _, augment in size]


def by_pillow(image: Image.Image, augment: Augment, u: Tensor) -> Image.Image:
    """One image by Pillow and torchvision, with what the numbers `u` [uniforms] say."""
    own, *others = u[:, None].split([augment.crop.uniforms, *(p.uniforms for p in augment.policies)])
    top, left, height, width = (int(v) for v in augment.crop._boxes(own[2:], image.size[::-1], augment.crop.scale))
    image = TF.resized_crop(image, top, left, height, width, list(augment.crop.img_size), BICUBIC)
    if own[0] < augment.crop.flip:
        image = TF.hflip(image)
    for policy, numbers in zip(augment.policies, others, strict=True):
        for layer in policy.layers(numbers):
            op, arg = Op(int(layer.op)), float(layer.arg)
            if op == Op.BLUR:
                image = image.filter(ImageFilter.GaussianBlur(arg))
            elif op == Op.SOLARIZE:
                image = TF.solarize(image, arg)
            elif op != Op.IDENTITY:
                image = JITTERS[op](image, arg)
    return image


@pytest.mark.parametrize('kind', ['contrastive', 'low resolution'])
def test_each_view_of_each_image_is_pillows_with_its_own_numbers(kind: str) -> None:
    images = batch(12, 40, 34)
    views = views_of(kind, (32, 24))
    numbers, wrong = generator(3), []
    for size, group in zip(views.sizes, views(images, generator(3)), strict=True):
        found = iter(group)
        for count, augment in size:
            rows = augment.crop.uniforms + sum(policy.uniforms for policy in augment.policies)
            u = torch.rand(rows, count * len(images), generator=numbers).unflatten(1, (count, -1))
            for view in range(count):
                for i, have in enumerate(next(found)):
                    want = TF.normalize(TF.to_tensor(by_pillow(to_pil(images[i]), augment, u[:, view, i])), MEAN, STD)
                    assert have.shape == want.shape
                    wrong.append(((have - want).abs() * torch.tensor(STD)[:, None, None] * 255 > 2.5).float().mean())
    # one level off may turn a hue, or lie on the other side of the solarising level
    assert torch.stack(wrong).mean() < 0.01 and torch.stack(wrong).median() < 0.002


def reference(size: int, scale: tuple[float, float], blur: float, solarize: float) -> transforms.Compose:
    return transforms.Compose([
        transforms.RandomResizedCrop(size, scale, interpolation=BICUBIC), transforms.RandomHorizontalFlip(0.5),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8), transforms.RandomGrayscale(0.2),
        transforms.RandomApply(
            [transforms.Lambda(lambda x: x.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.))))], blur),
        transforms.RandomApply([transforms.Lambda(ImageOps.solarize)], solarize),
        transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def test_the_whole_is_distributed_as_torchvisions() -> None:
    """Mean and spread of every pixel of one image, over many draws, for each of the three kinds of views."""
    image, n = batch(1), 700
    whole, local = low_resolution_views(spec(), 1)(image.expand(n, -1, -1, -1), generator())
    random.seed(0)
    for got, *settings in (
            (whole[0], 32, (0.7, 1.), 1., 0.), (whole[1], 32, (0.7, 1.), 0.1, 0.2),
            (local[0], 16, (0.2, 0.5), 0.5, 0.)):
        theirs = reference(*settings)
        want = torch.stack([theirs(to_pil(image[0])) for _ in range(n)])
        assert (got.mean(0) - want.mean(0)).abs().max() < 0.3 and (got.mean() - want.mean()).abs() < 0.07
        assert (got.std(0) - want.std(0)).abs().mean() < 0.05
        roughness = [x.diff(dim=3).abs().mean() for x in (got, want)]  # of what was blurred less often there is more
        assert abs(roughness[0] / roughness[1] - 1) < 0.06


def test_sizes_and_numbers() -> None:
    images = batch(3, 40, 40)
    whole, local = low_resolution_views(spec(32, 20))(images, generator())
    assert whole.shape == (2, 3, 3, 32, 20) and local.shape == (8, 3, 3, 16, 10)
    assert whole.dtype == local.dtype == torch.float32
    alone, = low_resolution_views(spec(), 0)(images, generator())
    assert alone.shape == (2, 3, 3, 32, 32)
    pair, = contrastive_views(spec(16, 16))(images, generator())
    assert pair.shape == (2, 3, 3, 16, 16)
    grey = low_resolution_views(replace(spec(), mean=(0.5,), std=(0.2,)))(batch(3, 32, 32, 1), generator())
    assert [group.shape[2] for group in grey] == [1, 1]


def test_the_papers_settings() -> None:
    first, second, local = augmentations(low_resolution_views(spec()))
    assert (first.crop.scale, local.crop.scale, first.crop.interpolation) == ((0.7, 1.), (0.2, 0.5), 'bicubic')
    one, two = augmentations(contrastive_views(spec(scale=(0.08, 1.))))
    assert one.crop.scale == (0.08, 1.)
    for augment, blur, solarize in ((first, 1., 0.), (second, .1, .2), (local, .5, 0.), (one, 1., 0.), (two, .1, .2)):
        jitter, grey, *rest = augment.policies
        assert (jitter.prob, grey.prob, augment.crop.flip) == (0.8, 0.2, 0.5)
        assert rest[0].prob == blur and (rest[0].low, rest[0].high) == (0.1, 2.)
        assert [policy.prob for policy in rest[1:]] == [solarize] * bool(solarize)


@pytest.mark.parametrize('kind', ['contrastive', 'low resolution'])
def test_what_is_not_to_be_flipped_is_never_flipped(kind: str) -> None:
    """Dark on the left: so in every view, but for what is solarised."""
    ramp = torch.linspace(0, 127, 32).to(torch.uint8).expand(200, 3, 32, 32)
    for flip, share in ((0., 0.), (0.5, 0.5)):
        for group in views_of(kind, (32, 32), flip=flip)(ramp, generator()):
            for view in group[:1] if len(group) == 2 else group:
                columns = view.mean((1, 2))
                mirrored = columns[:, 0] > columns[:, -1]
                assert abs(mirrored.float().mean() - share) < (0.12 if share else 1e-9)


def test_the_generator_decides_alone_and_every_view_is_another() -> None:
    images = batch(1).expand(6, -1, -1, -1)
    views = low_resolution_views(spec())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    first, again = views(images, generator(5)), views(images, generator(5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tobytes()
    for group in first:
        assert len(group.flatten(0, 1).flatten(1).unique(dim=0)) == group.shape[0] * group.shape[1]


def test_local_views_show_less() -> None:
    """A ramp from left to right: a local view spans a part of it, a global one most."""
    ramp = torch.linspace(0, 255, 32).round().to(torch.uint8).expand(100, 3, 32, 32)
    views = low_resolution_views(replace(spec(), mean=(0.,), std=(1 / 255,)))
    for group, low, high in zip(views(ramp, generator()), (0.55, 0.25), (1.1, 0.9), strict=True):
        plain = group[0]
        span = (plain.amax((1, 2, 3)) - plain.amin((1, 2, 3))).median() / 255
        assert low < span < high
