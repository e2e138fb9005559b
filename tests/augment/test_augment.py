"""The batched augmentation against Pillow's operations, timm's and torchvision's policies, and timm's Mixup.

Tolerances are grey levels of 255. Most operations are exact. One level is allowed where Pillow truncates a float64 that
is a whole number but for its rounding (a blend of pixels at a fraction such as 0.4; a stretched level), or rounds a
half in fixed point (a resize by a ratio such as 1.5): there either value is right. Two where such roundings follow each
other (the blur's three means an axis).
"""
import random
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from augment_cases import MEAN, STD, assert_levels, batch, from_pil, generator, picture, to_pil
from PIL import Image, ImageFilter, ImageOps
from timm.data import Mixup, RandomResizedCropAndInterpolation, auto_augment as timm_aa, create_transform, mixup as tm
from torchvision import transforms
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment import batched as augment_module, geometry, ops
from tinyvit_zoo.augment.batched import Augment, Mix, mix, normalize
from tinyvit_zoo.augment.ops import Layer, Op
from tinyvit_zoo.augment.policies import AutoAugment, ColorJitter, RandAugment, make_policy
from tinyvit_zoo.errors import ZooError

FILL = tuple(min(255, round(255 * v)) for v in MEAN)
SIZES = [(32, 32), (31, 45), (48, 29)]
RESAMPLE = {'nearest': Image.NEAREST, 'bilinear': Image.BILINEAR, 'bicubic': Image.BICUBIC}


# ---- operations

def timm_op(name: str, **kwargs: object) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, v: timm_aa.NAME_TO_OP[name](image, v, **kwargs)


FACTORS = np.linspace(0, 2.5, 26)
OPS = [
    (Op.IDENTITY, lambda image, v: image, [0.], 0, 0.),
    (Op.INVERT, lambda image, v: ImageOps.invert(image), [0.], 0, 0.),
    (Op.AUTO_CONTRAST, lambda image, v: ImageOps.autocontrast(image), [0.], 1, 0.03),
    (Op.EQUALIZE, lambda image, v: ImageOps.equalize(image), [0.], 0, 0.),
    (Op.POSTERIZE, timm_op('Posterize'), range(1, 9), 0, 0.),
    (Op.SOLARIZE, timm_op('Solarize'), range(257), 0, 0.),
    (Op.SOLARIZE, timm_op('Solarize'), np.linspace(0, 255, 10), 0, 0.),
    (Op.SOLARIZE_ADD, timm_op('SolarizeAdd'), range(129), 0, 0.),
    (Op.BRIGHTNESS, timm_op('Brightness'), FACTORS, 0, 0.),
    (Op.CONTRAST, timm_op('Contrast'), FACTORS, 0, 0.),
    (Op.COLOR, timm_op('Color'), FACTORS, 1, 0.005),
    (Op.SHARPNESS, timm_op('Sharpness'), FACTORS, 1, 0.005),
    (Op.HUE, TF.adjust_hue, np.linspace(-0.5, 0.5, 20), 1, 0.005),
    (Op.BLUR, lambda image, v: image.filter(ImageFilter.GaussianBlur(v)), np.linspace(0.1, 2, 20), 2, 0.05),
]
for _kernel, _share in (('nearest', 0.), ('bilinear', 0.15), ('bicubic', 0.1)):
    _how = {'resample': RESAMPLE[_kernel], 'fillcolor': FILL}
    OPS += [
        (Op.ROTATE, timm_op('Rotate', **_how), np.linspace(-30, 30, 13), 0 if _kernel == 'nearest' else 1, _share),
        (Op.SHEAR_X, timm_op('ShearX', **_how), np.linspace(-0.3, 0.3, 13), 0 if _kernel == 'nearest' else 1, _share),
        (Op.SHEAR_Y, timm_op('ShearY', **_how), np.linspace(-0.3, 0.3, 13), 0 if _kernel == 'nearest' else 1, _share),
        (Op.TRANSLATE_X, timm_op('TranslateX', **_how), np.linspace(-15, 15, 13), int(_kernel != 'nearest'), _share),
        (Op.TRANSLATE_Y, timm_op('TranslateY', **_how), np.linspace(-15, 15, 13), int(_kernel != 'nearest'), _share)]
KERNELS = ['nearest'] * (len(OPS) - 15) + [kernel for kernel in RESAMPLE for _ in range(5)]


@pytest.mark.parametrize('dense', [False, True], ids=['sparse', 'dense'])
@pytest.mark.parametrize('case, kernel', list(zip(OPS, KERNELS, strict=True)),
                         ids=[f'{case[0].name}-{kernel}' for case, kernel in zip(OPS, KERNELS, strict=True)])
def test_operation_is_pillows(case: tuple, kernel: str, dense: bool) -> None:
    """Over the range of the magnitude and beyond, every value of it at once: each image has its own."""
    op, reference, values, levels, share = case
    for h, w in SIZES:
        image = torch.from_numpy(picture(h, w, h)).permute(2, 0, 1)
        images = image.repeat(len(values), 1, 1, 1)
        layer = Layer(torch.full((len(values),), int(op)), torch.tensor([float(v) for v in values]), kernel,
                      torch.tensor(FILL, dtype=torch.float32))
        want = torch.stack([from_pil(reference(to_pil(image), v if op == Op.SOLARIZE else float(v)
                                               if op not in (Op.POSTERIZE, Op.SOLARIZE_ADD) else v)) for v in values])
        assert_levels(ops.apply(images, layer, frozenset([op]), dense), want, levels, share)
        assert torch.equal(images[0], image)        # the batch given is not written to


def test_posterize_to_no_bits_is_black() -> None:
    """As Pillow had it, and TensorFlow; newer Pillows refuse the 0 bits that timm's highest magnitude asks for."""
    layer = Layer(torch.tensor([int(Op.POSTERIZE)]), torch.tensor([0.]))
    assert not ops.apply(batch(1), layer, frozenset([Op.POSTERIZE])).any()


@pytest.mark.parametrize('value', [0, 77, 255])
@pytest.mark.parametrize('op', [Op.AUTO_CONTRAST, Op.EQUALIZE, Op.SHARPNESS, Op.BLUR, Op.HUE, Op.ROTATE])
def test_a_flat_image_stays(op: Op, value: int) -> None:
    images = torch.full((1, 3, 9, 7), value, dtype=torch.uint8)
    layer = Layer(torch.tensor([int(op)]), torch.tensor([0.3]), 'bilinear', torch.tensor([float(value)]))
    assert torch.equal(ops.apply(images, layer, frozenset([op])), images)


def test_equalize_of_few_and_of_many_pixels() -> None:
    """The two ends of its integer arithmetic: a step of 0 leaves the image; a remainder would pass 255."""
    for h, w in ((5, 5), (16, 17), (64, 80)):
        for seed in range(5):
            image = batch(seed + 1, h, w)[seed]
            got = ops.apply(image[None], Layer(torch.tensor([int(Op.EQUALIZE)]), torch.zeros(1)),
                            frozenset([Op.EQUALIZE]))
            assert torch.equal(got[0], from_pil(ImageOps.equalize(to_pil(image))))


@pytest.mark.parametrize('channels', [1, 4, 5])
def test_other_channel_counts(channels: int) -> None:
    """One channel is Pillow's mode L. Others: each channel as an image of its own, or with the mean as the grey."""
    geometric = [Op.ROTATE, Op.SHEAR_X, Op.TRANSLATE_Y]
    colour = [Op.INVERT, Op.SOLARIZE, Op.AUTO_CONTRAST, Op.EQUALIZE, Op.BRIGHTNESS, Op.SHARPNESS, Op.BLUR]
    images = batch(1, 20, 26, channels)
    for op in geometric + colour:
        layer = Layer(torch.tensor([int(op)]), torch.tensor([0.7]), 'bilinear', torch.full((channels,), 9.))
        got = ops.apply(images, layer, frozenset([op]))
        alone = [ops.apply(images[:, c:c + 1], layer._replace(fill=torch.tensor([9.])), frozenset([op]))
                 for c in range(channels)]
        assert torch.equal(got, torch.cat(alone, 1))
    grey = ops.apply(images, Layer(torch.tensor([int(Op.COLOR)]), torch.zeros(1)), frozenset([Op.COLOR]))
    mean = (images.float().mean(1, keepdim=True) + 0.5).floor()
    assert torch.equal(grey, mean.to(torch.uint8).expand_as(images))
    contrast = ops.apply(images, Layer(torch.tensor([int(Op.CONTRAST)]), torch.zeros(1)), frozenset([Op.CONTRAST]))
    assert (contrast == contrast[0, 0, 0, 0]).all() and abs(int(contrast[0, 0, 0, 0]) - float(mean.mean())) <= 1
    hue = Layer(torch.tensor([int(Op.HUE)]), torch.tensor([0.2]))
    if channels == 1:
        assert torch.equal(ops.apply(images, hue, frozenset([Op.HUE])), images)
    else:
        with pytest.raises(ZooError, match='1 or 3 are expected'):
            ops.apply(images, hue, frozenset([Op.HUE]))


# ---- crops

@pytest.mark.parametrize('kernel', ['bilinear', 'bicubic', 'random'])
@pytest.mark.parametrize('size, out', [((32, 32), (32, 32)), ((31, 45), (32, 32)), ((64, 50), (16, 24)),
                                       ((32, 32), (16, 16)), ((20, 20), (48, 40)), ((13, 11), (7, 30))])
def test_resized_crop_is_pillows(size: tuple[int, int], out: tuple[int, int], kernel: str) -> None:
    rng = random.Random(0)
    images = batch(12, *size)
    boxes = []
    for _ in images:
        h, w = rng.randint(size[0] // 3, size[0]), rng.randint(size[1] // 3, size[1])
        boxes.append((rng.randint(0, size[0] - h), rng.randint(0, size[1] - w), h, w))
    flip, cubic = torch.arange(12) % 2 == 1, torch.arange(12) % 3 == 0
    cubic = cubic if kernel == 'random' else torch.full((12,), kernel == 'bicubic')
    got = geometry.resized_crop(images, torch.tensor(boxes, dtype=torch.float32).unbind(1), out,
                                cubic if kernel == 'random' else kernel, flip)
    for image, box, flipped, is_cubic, have in zip(images, boxes, flip, cubic, got, strict=True):
        mode = TF.InterpolationMode.BICUBIC if is_cubic else TF.InterpolationMode.BILINEAR
        want = TF.resized_crop(to_pil(image), *box, list(out), mode)
        # The newer Pillows start with the height where it shrinks and the width grows; what overshoots is cut between.
        swapped = box[2] > out[0] and box[3] < out[1]
        assert_levels(have, from_pil(TF.hflip(want) if flipped else want), 5 if swapped else 1, 0.3)


@pytest.mark.parametrize('size, ratio', [((32, 32), (3 / 4, 4 / 3)), ((24, 40), (3 / 4, 4 / 3)), ((10, 90), (0.9, 1.1)),
                                         ((90, 10), (0.9, 1.1))])
def test_crop_boxes_are_timms(size: tuple[int, int], ratio: tuple[float, float]) -> None:
    """The same distribution: mean and spread of each side and corner; in the last two cases often no attempt fits."""
    n, scale = 4000, (0.3, 1.)
    crop = Augment(size, MEAN, STD, crop_scale=scale, crop_ratio=ratio).crop
    ours = torch.stack(crop._boxes(torch.rand(crop.uniforms - 2, n), size, scale))
    random.seed(0)
    image = Image.new('RGB', size[::-1])
    theirs = torch.tensor([RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(n)]).T
    torch.testing.assert_close(ours.mean(1), theirs.float().mean(1), rtol=0.05, atol=0.15)
    torch.testing.assert_close(ours.std(1), theirs.float().std(1), rtol=0.08, atol=0.1)
    top, left, height, width = ours
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= size[0]).all() and (left + width <= size[1]).all()
    if max(size) < 3 * min(size):                               # else the box is in the middle
        assert (top + height == size[0]).any() and (left + width == size[1]).any() and (top == 0).any()


@pytest.mark.parametrize('size', [(32, 32), (28, 36)])
def test_padded_crop(size: tuple[int, int]) -> None:
    """Every place of the window in the padded image, and no other; as torchvision's pad, crop and flip."""
    image = picture(*size)
    images = torch.from_numpy(image).permute(2, 0, 1).expand(3000, -1, -1, -1)
    got = Augment(size, (0.,), (1 / 255,), crop_padding=2, flip=0.5)(images, generator()).round().to(torch.uint8)
    padded = TF.pad(to_pil(images[0]), 2)
    want = {}
    for top in range(5):
        for left in range(5):
            window = TF.crop(padded, top, left, *size)
            want[from_pil(window).numpy().tobytes()] = (top, left, False)
            want[from_pil(TF.hflip(window)).numpy().tobytes()] = (top, left, True)
    seen = [want[x.numpy().tobytes()] for x in got]
    assert len(set(seen)) == 50
    assert abs(sum(flip for _, _, flip in seen) / 3000 - 0.5) < 0.05


def test_crop_to_another_size() -> None:
    images = batch(4, 40, 30)
    assert Augment((16, 20), MEAN, STD, crop_scale=(0.2, 1.))(images, generator()).shape == (4, 3, 16, 20)
    assert Augment((32, 32), MEAN, STD, crop_padding=4)(images, generator()).shape == (4, 3, 32, 32)
    got = Augment((16, 20), (0.,), (1 / 255,))(images, generator()).round()
    want = torch.stack([from_pil(TF.resize(to_pil(x), [16, 20])) for x in images])
    assert_levels(got, want, 1, 0.3)                            # by 2.5 and 1.5: halves in plenty
    with pytest.raises(ZooError, match='too small for a crop'):
        Augment((32, 40), MEAN, STD, crop_padding=4)(images, generator())


# ---- policies

OP_OF = {'AutoContrast': Op.AUTO_CONTRAST, 'Equalize': Op.EQUALIZE, 'Invert': Op.INVERT, 'Rotate': Op.ROTATE,
         'Posterize': Op.POSTERIZE, 'Solarize': Op.SOLARIZE, 'SolarizeAdd': Op.SOLARIZE_ADD, 'Color': Op.COLOR,
         'Contrast': Op.CONTRAST, 'Brightness': Op.BRIGHTNESS, 'Sharpness': Op.SHARPNESS, 'ShearX': Op.SHEAR_X,
         'ShearY': Op.SHEAR_Y, 'TranslateXRel': Op.TRANSLATE_X, 'TranslateYRel': Op.TRANSLATE_Y,
         'Desaturate': Op.COLOR, 'GaussianBlur': Op.BLUR}


def arguments(name: str, level: float, size: tuple[int, int]) -> set[float]:
    """timm's arguments of an operation at a level, under both signs."""
    function = timm_aa.LEVEL_TO_ARG[name]
    found = set()
    for draw in (0.25, 0.75):
        with mock.patch.object(timm_aa.random, 'random', lambda draw=draw: draw):
            value = float(function(level, {})[0]) if function else 0.
        if name.startswith('Translate'):
            value *= size[1] if 'X' in name else size[0]
        if name == 'Desaturate':
            value = min(1., max(0., 1. - value))
        if name.startswith('Posterize'):
            value = max(0, value)
        found.add(round(value, 4))
    return found


@pytest.mark.parametrize('text, names', [
    ('rand', timm_aa._RAND_TRANSFORMS), ('rand-inc1', timm_aa._RAND_INCREASING_TRANSFORMS),
    ('rand-t3a', timm_aa._RAND_3A), ('rand-t3aw-n9', list(timm_aa._RAND_WEIGHTED_3A)),
    ('rand-tweights', list(timm_aa._RAND_WEIGHTED_0))])
def test_magnitudes_are_timms(text: str, names: list[str]) -> None:
    size, n = (24, 36), 4000
    for level in range(0, 15):
        policy = make_policy(f'{text}-m{level}-mmax12-p1', size, 'bilinear', FILL)
        seen: dict[str, set[float]] = {name: set() for name in names}
        for layer in policy.layers(torch.rand(policy.uniforms, n)):
            for op, arg in torch.stack((layer.op.float(), layer.arg), 1).unique(dim=0).tolist():
                for name in names:
                    if OP_OF[name.removesuffix('Increasing')] == op:
                        seen[name].add(arg)
        for name in names:
            want = arguments(name, min(level, 12), size)
            if {'Desaturate', 'ColorIncreasing'} <= set(names) and name in ('Desaturate', 'ColorIncreasing'):
                want = set.union(*(arguments(n, min(level, 12), size) for n in ('Desaturate', 'ColorIncreasing')))
            assert all(min(abs(a - b) for b in want) < 1e-3 for a in seen[name]), (name, seen[name], want)
            assert all(min(abs(a - b) for a in seen[name]) < 1e-3 for b in want), (name, seen[name], want)


def test_choice_of_operations_is_timms() -> None:
    """Uniform with repetition and a chance of p, or by weight without repetition."""
    policy = RandAugment('rand-n3-p0.3', (32, 32), 'bilinear', FILL)
    op = torch.stack([layer.op for layer in policy.layers(torch.rand(policy.uniforms, 20000))])
    shares = op.flatten().bincount(minlength=len(Op)) / op.numel()
    assert abs(shares[0] - 0.7) < 0.01
    assert all(abs(shares[int(o)] - 0.3 / 15) < 0.004 for o in policy.known)
    assert (op[0][op[0] > 0] == op[1][op[0] > 0]).any()
    policy = RandAugment('rand-n14-p1-t3aw', (32, 32), 'bilinear', FILL)
    which = torch.stack([layer.op * 100 + layer.arg.abs().long() for layer in policy.layers(
        torch.rand(policy.uniforms, 20000))])
    names, probs = timm_aa._get_weighted_transforms(timm_aa._RAND_WEIGHTED_3A)
    first = RandAugment('rand-n1-p1-t3aw', (32, 32), 'bilinear', FILL)
    op = first.layers(torch.rand(first.uniforms, 20000))[0].op
    assert abs((op == int(Op.SOLARIZE)).float().mean() - probs[names.index('SolarizeIncreasing')]) < 0.012
    assert abs((op == int(Op.BLUR)).float().mean() - probs[names.index('GaussianBlur')]) < 0.012
    assert all(len(set(column)) >= 13 for column in which.T[:100].tolist())  # two operations share Op.COLOR


def test_spread_of_the_magnitude_is_timms() -> None:
    policy = RandAugment('rand-m5-mstd0.5', (32, 32), 'bilinear', FILL)
    level = policy._level(torch.rand(40000))
    assert abs(level.mean() - 5) < 0.02 and abs(level.std() - 0.5) < 0.02
    level = RandAugment('rand-m9-mstd0.5', (32, 32), 'bilinear', FILL)._level(torch.rand(40000))
    assert level.max() == 10 and abs((level == 10).float().mean() - 0.0228) < 0.004
    level = RandAugment('rand-m8-mstd101', (32, 32), 'bilinear', FILL)._level(torch.rand(40000))
    assert level.min() < 0.1 and 7.9 < level.max() <= 8 and abs(level.mean() - 4) < 0.05
    assert RandAugment('rand-m9-mstd5-mmax20', (32, 32), 'bilinear', FILL)._level(torch.rand(4000)).max() > 12
    assert torch.isfinite(RandAugment('rand', (32, 32), 'bilinear', FILL)._level(torch.zeros(3))).all()


@pytest.mark.parametrize('size', [(32, 32), (24, 36)])
@pytest.mark.parametrize('name', ['imagenet', 'cifar10', 'svhn'])
def test_auto_augment_is_torchvisions(name: str, size: tuple[int, int]) -> None:
    """Every sub-policy with every pair of signs, the whole of it on an image. A level off after the first operation may
    lie on the other side of the second one's threshold, in few pixels."""
    theirs = transforms.AutoAugment(transforms.AutoAugmentPolicy(name))
    ours = AutoAugment(name, size)
    image = batch(1, *size)
    for index, pair in enumerate(theirs.policies):
        for signs in ((0, 0), (0, 1), (1, 0), (1, 1)):
            probs = torch.tensor([p - 1e-3 if p else 1e-3 for _, p, _ in pair])         # all happen that may
            # torchvision's sign of a translation is that of the image, ours that of the pixel looked up
            own = [1 - s if op.startswith('Translate') else s for s, (op, _, _) in zip(signs, pair, strict=True)]
            u = torch.tensor([(index + 0.5) / 25, *probs, *(0.25 + 0.5 * s for s in own)])[:, None]
            with mock.patch.object(theirs, 'get_params', lambda _, p=probs, i=index, s=signs: (i, p, torch.tensor(s))):
                want = from_pil(theirs(to_pil(image[0])))
            got = image
            for layer in ours.layers(u):
                got = ops.apply(got, layer, ours.known)
            off = (got[0].int() - want.int()).abs()
            assert (off > 1).float().mean() < 0.01, (pair, signs, off.max())


def test_auto_augment_draws_every_sub_policy() -> None:
    policy = AutoAugment('svhn', (32, 32))
    first, second = policy.layers(torch.rand(5, 60000))
    both = (first.op == int(Op.INVERT)) & (second.op == int(Op.EQUALIZE))
    assert abs(both.float().mean() - 2 * 0.9 * 0.6 / 25) < 0.004
    never = (first.op == int(Op.INVERT)) & (second.op == int(Op.TRANSLATE_Y))
    assert not never.any()


def test_color_jitter_is_torchvisions() -> None:
    """The factors' bounds, every order of the four equally often, and the result in that order."""
    amounts = (0.4, 0.3, 0.2, 0.1)
    policy = ColorJitter(amounts, 0.8)
    layers = policy.layers(torch.rand(policy.uniforms, 24000))
    op, arg = torch.stack([layer.op for layer in layers]), torch.stack([layer.arg for layer in layers])
    assert abs((op[0] > 0).float().mean() - 0.8) < 0.01
    assert len(op[:, op[0] > 0].T.unique(dim=0)) == 24
    reference = transforms.ColorJitter(*amounts)
    bounds = (reference.brightness, reference.contrast, reference.saturation, reference.hue)
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for o, (low, high) in zip((Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE), bounds, strict=True):
        values = arg[op == int(o)]
        assert low <= values.min() < low + 0.01 and high - 0.01 < values.max() <= high + 1e-6
    images = batch(8)
    got = images
    for layer in layers:
        got = ops.apply(got, Layer(layer.op[:8], layer.arg[:8]), policy.known)
    names = {int(o): f for o, f in zip((Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE), functions, strict=True)}
    for i in range(8):
        want = to_pil(images[i])
        for layer in layers:
            if layer.op[i]:
                want = names[int(layer.op[i])](want, float(layer.arg[i]))
        off = (got[i].int() - from_pil(want).int()).abs()   # a level off before the hue may turn it by more
        assert (off > 1).float().mean() < 0.02


def test_grey_blur_and_solarise() -> None:
    images = batch(1).expand(400, -1, -1, -1)
    plain = {'mean': (0.,), 'std': (1 / 255,)}
    for kwargs, wanted in (({'grey': 0.3}, transforms.Grayscale(3)), ({'solarize': 0.3}, ImageOps.solarize)):
        got = Augment((32, 32), **plain, **kwargs)(images, generator()).round().to(torch.uint8)
        changed = (got != images).flatten(1).any(1)
        assert abs(changed.float().mean() - 0.3) < 0.1
        want = from_pil(wanted(to_pil(images[0])))
        assert (got[changed] == want).all() and (got[~changed] == images[0]).all()
    got = Augment((32, 32), **plain, blur=0.5, blur_sigma=(0.5, 2.))(images, generator())
    changed = (got.round() != images).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.5) < 0.1
    rough = got[changed].diff(dim=3).abs().mean((1, 2, 3))
    assert len(rough.unique()) > 100                # each image its own radius
    bounds = [from_pil(to_pil(images[0]).filter(ImageFilter.GaussianBlur(r))).float().diff(dim=2).abs().mean()
              for r in (0.5, 2.)]
    assert bounds[1] - 0.1 <= rough.min() < bounds[1] + 0.3 and bounds[0] - 0.5 < rough.max() <= bounds[0] + 0.1


# ---- the whole

FULL = {'flip': 0.5, 'crop_scale': (0.8, 1.), 'auto_augment': 'rand-m9-mstd0.5-inc1', 'interpolation': 'random'}
VIEWS = {'flip': 0.5, 'crop_scale': (0.2, 1.), 'interpolation': 'bicubic', 'color_jitter': (0.4, 0.4, 0.2, 0.1),
         'color_jitter_prob': 0.8, 'grey': 0.2, 'blur': 0.5, 'solarize': 0.2, 'erase': 0.3, 'erase_mode': 'const'}
RECIPES = [FULL, VIEWS, {'flip': 0.5, 'crop_padding': 4, 'auto_augment': 'cifar10', 'erase': 0.25}, {}]


@pytest.mark.parametrize('kwargs', RECIPES)
def test_the_generator_decides_alone(kwargs: dict) -> None:
    images = batch(1).expand(48, -1, -1, -1)
    augment, numbers = Augment((32, 32), MEAN, STD, **kwargs), generator(5)
    kept = images.clone()
    others = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    first = augment(images, numbers)
    state = numbers.get_state()
    second = augment(images, numbers)
    resumed = torch.Generator()
    resumed.set_state(state)
    assert torch.equal(augment(images, resumed), second)
    assert torch.equal(Augment((32, 32), MEAN, STD, **kwargs)(images, generator(5)), first)
    assert torch.equal(others[0], torch.get_rng_state()) and others[1] == random.getstate()
    assert others[2] == np.random.get_state()[1].tobytes() and torch.equal(images, kept)
    assert first.dtype == torch.float32 and first.shape == images.shape and first.is_contiguous()
    if kwargs:
        assert not torch.equal(first, second)
        assert len(first.flatten(1).unique(dim=0)) > 40         # each image its own parameters
    else:
        assert torch.equal(first, normalize(images, MEAN, STD))


@pytest.mark.parametrize('kwargs', [FULL, VIEWS, RECIPES[2] | {'erase_mode': 'const'}])
@pytest.mark.parametrize('channels', [1, 3])
def test_both_ways_give_the_same_bits(kwargs: dict, channels: int) -> None:
    """Each operation on its images, as on the CPU, and each on all of them, as elsewhere."""
    images = batch(40, 26, 37, channels)
    augment = Augment((24, 28), MEAN[:channels], STD[:channels], **kwargs)
    sparse = augment(images, generator())
    augment.dense = True
    assert torch.equal(augment(images, generator()), sparse)


def test_the_way_of_a_gpu_waits_for_nothing() -> None:
    """A tensor without data cannot be counted or looked at."""
    images = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device='meta')
    for kwargs in RECIPES[:3]:
        augment = Augment((32, 32), MEAN, STD, **kwargs)
        u = torch.empty(augment.crop.uniforms + sum(p.uniforms for p in augment.policies), 8, device='meta')
        assert augment._augment(images, u).shape == images.shape
        if augment.erase.prob:
            augment.erase._holes(torch.empty(augment.erase.uniforms, 8, device='meta'), 32, 32)


def test_compiles_as_one_graph() -> None:
    augment = Augment((16, 16), MEAN, STD, flip=0.5, crop_padding=2, auto_augment='rand-n1-t3a', erase=0.25)
    images = batch(16, 16, 16)
    augment.dense = True
    want = augment(images, generator())
    compile_ = torch.compile
    with mock.patch('torch.compile', lambda f, **kw: compile_(f, backend='eager', fullgraph=True, **kw)):
        augment.compile()
    assert torch.equal(augment(images, generator()), want)


def test_chunks_autocast_and_strides_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    augment, images = Augment((32, 32), MEAN, STD, **FULL), batch(20)
    want = augment(images, generator())
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(augment(images, generator()), want)
    assert torch.equal(augment(images.to(memory_format=torch.channels_last), generator()), want)
    monkeypatch.setattr(augment_module, '_CHUNK_CPU', 7 * 3 * 32 * 32)
    assert torch.equal(augment(images, generator()), want)
    assert augment(images[:0], generator()).shape == (0, 3, 32, 32)


def test_the_whole_is_distributed_as_timms() -> None:
    """Mean and spread of every pixel of one image, over many draws of both pipelines."""
    image = batch(1)
    theirs = create_transform(32, is_training=True, scale=(0.8, 1.), hflip=0.5, interpolation='bilinear', mean=MEAN,
                              std=STD, auto_augment='rand-m5-mstd0.5-inc1', color_jitter=None)
    n = 1500
    random.seed(0)
    np.random.seed(0)
    want = torch.stack([theirs(to_pil(image[0])) for _ in range(n)])
    ours = Augment((32, 32), MEAN, STD, **FULL | {'auto_augment': 'rand-m5-mstd0.5-inc1', 'interpolation': 'bilinear'})
    got = ours(image.expand(n, -1, -1, -1), generator())
    # a mean of n draws with a deviation of about 0.8 is known to 0.03; of two, over 3072 pixels, 5 of those
    assert (got.mean(0) - want.mean(0)).abs().max() < 0.2 and (got.mean() - want.mean()).abs() < 0.05
    assert (got.std(0) - want.std(0)).abs().mean() < 0.03


def test_normalize_is_to_tensor_and_normalize() -> None:
    images = batch(2, 9, 11)
    want = torch.stack([transforms.Normalize(MEAN, STD)(TF.to_tensor(to_pil(x))) for x in images])
    torch.testing.assert_close(normalize(images, MEAN, STD), want, rtol=1e-5, atol=1e-5)
    one = normalize(batch(2, 9, 11, 5), (0.5,), (0.25,))
    torch.testing.assert_close(one, (batch(2, 9, 11, 5) / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 4, 5])
def test_augment_takes_any_channels(channels: int) -> None:
    images = batch(30, 30, 22, channels)
    for mean in (MEAN[:1], (0.4,) * channels):
        more = {'erase': 0.5, 'grey': 0.2, 'color_jitter': (0.4, 0.4, 0.4, 0.)}
        augment = Augment((24, 20), mean, mean, **FULL | more)
        got = augment(images, generator())
        assert got.shape == (30, channels, 24, 20) and got.isfinite().all()


# ---- erasing

@pytest.mark.parametrize('size', [(32, 32), (20, 48)])
def test_erasing_is_timms(size: tuple[int, int]) -> None:
    """One rectangle in a share of the images: its area and aspect, everywhere; normal noise, or 0."""
    n, area, aspect = 3000, (0.05, 0.25), (0.4, 2.)
    images = torch.full((n, 2, *size), 200, dtype=torch.uint8)
    plain = (200 / 255 - 0.1) / 0.3
    got = Augment(size, (0.1,), (0.3,), erase=0.6, erase_area=area, erase_aspect=aspect)(images, generator())
    holes = (got - plain).abs() > 1e-4
    on = holes.flatten(1).any(1)
    assert abs(on.float().mean() - 0.6) < 0.04
    assert torch.equal(holes[:, 0], holes[:, 1]) or (holes[:, 0] != holes[:, 1]).sum() < 20   # noise may hit the value
    holes = holes.any(1)[on]
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    pixels = holes.sum((1, 2))
    assert ((heights * widths) - pixels).max() <= 1             # rectangles
    share = pixels / (size[0] * size[1])
    assert area[0] * 0.8 < share.min() < area[0] * 1.2 and area[1] * 0.85 < share.max() < area[1] * 1.15
    ratio = heights / widths
    assert ratio.min() > aspect[0] * 0.75 and ratio.max() < aspect[1] * 1.35
    noise = got[on].transpose(0, 1)[:, holes]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert holes[:, 0].any() and holes[:, -1].any() and holes[:, :, 0].any() and holes[:, :, -1].any()
    const = Augment(size, (0.1,), (0.3,), erase=1., erase_mode='const')(images, generator())
    assert (((const - plain).abs() < 1e-4) | (const == 0)).all()
    assert (const == 0).flatten(1).any(1).float().mean() > 0.95


# ---- mixing

def timm_mixing(mode: str, seed: int, n: int, size: tuple[int, int], alphas: tuple[float, float],
                ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """timm's images and targets, and what it drew for them: its draws are repeated in its order."""
    mixer = Mixup(*alphas, mode=mode, prob=0.9, label_smoothing=0.1, num_classes=7)
    torch.manual_seed(seed)
    x, labels = torch.randn(n, 3, *size), torch.randint(0, 7, (n,))
    np.random.seed(seed)
    got, targets = mixer(x.clone(), labels)
    np.random.seed(seed)
    lam, cut = mixer._params_per_elem(n) if mode == 'elem' else mixer._params_per_batch()
    lam, cut = np.atleast_1d(lam), np.atleast_1d(cut) & (np.atleast_1d(lam) < 1)
    centres = [[np.random.randint(0, side) if c else 0 for side in size] for c in cut]
    row, column = torch.tensor(centres, dtype=torch.float32).unbind(1)
    return got, targets, {'x': x, 'labels': labels, 'lam': torch.tensor(lam, dtype=torch.float32),
                          'cut': torch.tensor(cut), 'row': row, 'column': column}


@pytest.mark.parametrize('mode', ['batch', 'elem'])
@pytest.mark.parametrize('alphas', [(0.8, 0.), (0., 1.), (0.8, 1.)], ids=['mixup', 'cutmix', 'both'])
@pytest.mark.parametrize('size', [(32, 32), (17, 24)])
def test_mixing_is_timms(mode: str, alphas: tuple[float, float], size: tuple[int, int]) -> None:
    """The same numbers from the same lam and rectangle, up to float32's rounding of lam."""
    for seed in range(12):
        got, targets, drawn = timm_mixing(mode, seed, 6, size, alphas)
        plain = tm.mixup_target(drawn['labels'], 7, 1., 0.1)
        x, mixed = mix(drawn['x'], plain, drawn['lam'], drawn['cut'], drawn['row'], drawn['column'])
        torch.testing.assert_close(x, got, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mixed, targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['batch', 'elem'])
def test_mix_draws_as_timm(mode: str) -> None:
    """lam from the beta distributions, cutmix in its share, each image or each batch its own, from the generator."""
    x = torch.zeros(400, 1, 16, 16)
    x[200:] = 1
    labels = torch.zeros(400, dtype=torch.long)
    labels[200:] = 1
    numbers, others = generator(), torch.get_rng_state()
    both = Mix(2, 0.4, 1., prob=0.8, switch_prob=0.3, mode=mode)
    shares, cut, whole = [], [], []
    for _ in range(300 if mode == 'batch' else 6):
        got, targets = both(x, labels, numbers)
        part = got[:200].mean((1, 2, 3))                        # of the second class
        torch.testing.assert_close(part, targets[:200, 1], rtol=1e-4, atol=1e-5)
        shares += part.tolist() if mode == 'elem' else [part[0].item()]
        cut.append((got[:200] * (1 - got[:200]) == 0).flatten(1).all(1) & (part > 0))
        whole.append(part == 0)
        assert mode == 'elem' or len(targets[:200].unique(dim=0)) == 1
        assert mode == 'batch' or len(targets[:200, 1].unique()) > 100
    assert torch.equal(others, torch.get_rng_state())
    rate = torch.cat(whole).float().mean() - 0.2
    assert -0.06 < rate < 0.09                                  # and a few cuts of no area
    assert abs(torch.cat(cut).float().mean() - 0.8 * 0.3) < 0.08
    mixup = Mix(2, 0.4, mode='elem')
    lam = torch.cat([1 - mixup(x, labels, numbers)[1][:200, 1] for _ in range(20)])
    beta = torch.distributions.Beta(0.4, 0.4)
    assert abs(lam.mean() - 0.5) < 0.02 and abs(lam.std() - beta.stddev) < 0.02


def test_mix_without_mixing_smooths() -> None:
    x, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 2, 1])
    got, targets = Mix(4, smoothing=0.2)(x, labels, generator())
    assert torch.equal(got, x)
    torch.testing.assert_close(targets, tm.mixup_target(labels, 4, 1., 0.2))
    got, targets = Mix(4, 1., 1., prob=0.)(x, labels, generator())
    assert torch.equal(got, x) and torch.equal(targets, torch.eye(4)[labels])


# ---- mistakes

@pytest.mark.parametrize('kwargs, text', [
    ({'auto_augment': 'cifar'}, "Did you mean cifar10"),
    ({'auto_augment': 'rand-m9-msdt0.5'}, "unknown section 'msdt0.5'. Did you mean mstd"),
    ({'auto_augment': 'rand-m9-tweight'}, 'Did you mean tweights'),
    ({'auto_augment': 'rand-m9.5'}, "needs a whole number after 'm': got '9.5'"),
    ({'auto_augment': 'rand-mstd'}, "needs a number after 'mstd': got ''"),
    ({'auto_augment': 'rand-m9-p2'}, 'a probability of 2'),
    ({'auto_augment': 'rand-n0'}, 'no layer'),
    ({'auto_augment': 'rand-n15-t3aw'}, 'at most 14'),
    ({'auto_augment': 'rand--m9'}, "unknown section ''"),
    ({'interpolation': 'bilinaer'}, 'Did you mean bilinear'),
    ({'erase_mode': 'pixels'}, 'Did you mean pixel'),
    ({'flip': 1.5}, 'flip is 1.5: expected a probability'),
    ({'crop_scale': (0.8, 1.2)}, 'crop_scale'),
    ({'crop_scale': (0.8, 1.), 'crop_padding': 4}, 'one of the two'),
    ({'color_jitter': (0.4, 0.4, 0.4, 0.6)}, 'colour jitter'),
    ({'blur': 0.5, 'blur_sigma': (2., 0.1)}, 'blur_sigma'),
    ({'std': (0.2, 0.2)}, 'do not normalise'),
])
def test_mistakes_are_named(kwargs: dict, text: str) -> None:
    with pytest.raises(ZooError) as caught:
        Augment((32, 32), **({'mean': MEAN, 'std': STD} | kwargs))
    assert text in str(caught.value) and '\n' not in str(caught.value)


def test_mistakes_at_the_call_are_named() -> None:
    augment = Augment((32, 32), MEAN, STD)
    for images, text in ((torch.zeros(2, 3, 32, 32), 'takes uint8 images'), (batch(1)[0], 'takes uint8 images'),
                         (batch(1, 32, 32, 4), 'Images of 4 channels do not go with a mean of 3')):
        with pytest.raises(ZooError, match=text):
            augment(images, generator())
    with pytest.raises(ZooError, match='The generator is on cpu'):
        augment(torch.empty(1, 3, 32, 32, dtype=torch.uint8, device='meta'), generator())
    with pytest.raises(ZooError, match='Did you mean elem'):
        Mix(10, 0.5, mode='element')
    with pytest.raises(ZooError, match='beta distribution'):
        Mix(10, -0.5)
