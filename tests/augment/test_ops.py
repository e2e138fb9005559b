"""The operations against Pillow's.

Tolerances are grey levels of 255. Most operations are exact. One level is allowed where Pillow truncates a float64 that
is a whole number but for its rounding (a blend of pixels at a fraction such as 0.4; a stretched level), or rounds a
half in fixed point (a resize by a ratio such as 1.5): there either value is right. Two where such roundings follow each
other (the blur's three means an axis).
"""
from collections.abc import Callable

import numpy as np
import pytest
import torch
from augment_cases import MEAN, assert_levels, batch, from_pil, picture, to_pil
from PIL import Image, ImageFilter, ImageOps
from timm.data import auto_augment as timm_aa
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment import ops
from tinyvit_zoo.augment.ops import Layer, Op
from tinyvit_zoo.errors import ZooError

FILL = tuple(min(255, round(255 * v)) for v in MEAN)
SIZES = [(32, 32), (31, 45), (48, 29)]
RESAMPLE = {'nearest': Image.NEAREST, 'bilinear': Image.BILINEAR, 'bicubic': Image.BICUBIC}


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
        with pytest.raises(ZooError, match='have no hue'):
            ops.apply(images, hue, frozenset([Op.HUE]))
