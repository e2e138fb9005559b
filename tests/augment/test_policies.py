"""Policies against timm's and torchvision's: operations, magnitudes and shares."""
from unittest import mock

import pytest
import torch
from augment_cases import MEAN, batch, from_pil, to_pil
from timm.data import auto_augment as timm_aa
from torchvision import transforms
from torchvision.transforms import functional as TF

from tinyvit_zoo.augment import ops
from tinyvit_zoo.augment.ops import Layer, Op
from tinyvit_zoo.augment.policies import AutoAugment, ColorJitter, RandAugment, make_policy

FILL = tuple(min(255, round(255 * v)) for v in MEAN)


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
