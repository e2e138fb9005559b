"""Which operation each image undergoes and how strongly: RandAugment, AutoAugment, colour jitter, single operations.

A policy turns uniform random numbers into layers of `ops`; it draws none itself. Magnitudes are timm's for RandAugment
and torchvision's for AutoAugment.
"""
from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ZooError, nearest
from .geometry import Kernel
from .ops import Constant, Layer, Op


class Policy:
    """A sequence of layers: `layers` takes [uniforms, B] numbers in [0, 1) and gives an operation an image each."""
    uniforms: int
    known: frozenset[Op]

    def layers(self, u: Tensor) -> list[Layer]:
        raise NotImplementedError


def choose_kernel(interpolation: str, u: Tensor) -> Kernel:
    """`interpolation` itself, or where it is 'random' one of the two for each image."""
    return u < 0.5 if interpolation == 'random' else interpolation


class Single(Policy):
    """One operation with a probability, its argument uniform between two bounds."""

    def __init__(self, op: Op, prob: float, low: float = 0., high: float = 0.) -> None:
        self.op, self.prob, self.low, self.high = op, prob, low, high
        self.uniforms, self.known = 2, frozenset([op])

    def layers(self, u: Tensor) -> list[Layer]:
        return [Layer((u[0] < self.prob).long() * int(self.op), u[1] * (self.high - self.low) + self.low)]


class ColorJitter(Policy):
    """Brightness, contrast, colour and hue by random amounts in a random order, as torchvision's."""

    def __init__(self, amounts: Sequence[float], prob: float) -> None:
        if len(amounts) != 4 or min(amounts) < 0 or amounts[3] > 0.5:
            raise ZooError(f'The colour jitter is {tuple(amounts)}: expected the amounts of brightness, contrast, '
                           'colour and hue, none negative and the last at most 0.5.')
        bounds = [(max(0., 1 - a), 1 + a) for a in amounts[:3]] + [(-amounts[3], amounts[3])]
        ops = (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE)
        active = [(op, *bound) for op, bound, a in zip(ops, bounds, amounts, strict=True) if a > 0]
        self.prob, self.known = prob, frozenset(op for op, _, _ in active)
        self.ops = Constant([int(op) for op, _, _ in active])
        self.bounds = Constant([[[low] for _, low, _ in active], [[high] for _, _, high in active]])
        self.uniforms = 1 + 2 * len(active)

    def layers(self, u: Tensor) -> list[Layer]:
        ops, (low, high) = self.ops.on(u.device), self.bounds.on(u.device)
        count = len(ops)
        order = u[1:1 + count].argsort(0)
        args = (u[1 + count:] * (high - low) + low).gather(0, order)
        on = u[0] < self.prob
        return [Layer(ops[which] * on, arg) for which, arg in zip(order, args, strict=True)]


# ---- RandAugment

class _Level(NamedTuple):
    """The argument at a level from 0 to 10: offset + direction * slope * level, truncated and clamped.

    The direction 0 stands for a random sign.
    """
    op: Op
    slope: float = 0.
    offset: float = 0.
    direction: int = 1
    whole: bool = False
    low: float = -math.inf
    high: float = math.inf


def _enhance(op: Op, increasing: bool) -> _Level:
    return _Level(op, 0.09, 1., 0, low=0.1) if increasing else _Level(op, 0.18, 0.1)


def _levels(increasing: bool, size: tuple[int, int]) -> dict[str, _Level]:
    """timm's operations; `increasing` are those that grow in strength with the level where the older ones do not."""
    height, width = size
    return {
        'AutoContrast': _Level(Op.AUTO_CONTRAST),
        'Equalize': _Level(Op.EQUALIZE),
        'Invert': _Level(Op.INVERT),
        'Rotate': _Level(Op.ROTATE, 3., direction=0),
        'Posterize': _Level(Op.POSTERIZE, 0.4, 4 * increasing, 1 - 2 * increasing, True, 0., 8.),
        'Solarize': _Level(Op.SOLARIZE, 25.6, 256 * increasing, 1 - 2 * increasing, True, 0., 256.),
        'SolarizeAdd': _Level(Op.SOLARIZE_ADD, 11., whole=True, high=128.),
        'Color': _enhance(Op.COLOR, increasing),
        'Contrast': _enhance(Op.CONTRAST, increasing),
        'Brightness': _enhance(Op.BRIGHTNESS, increasing),
        'Sharpness': _enhance(Op.SHARPNESS, increasing),
        'ShearX': _Level(Op.SHEAR_X, 0.03, direction=0),
        'ShearY': _Level(Op.SHEAR_Y, 0.03, direction=0),
        'TranslateX': _Level(Op.TRANSLATE_X, 0.045 * width, direction=0),
        'TranslateY': _Level(Op.TRANSLATE_Y, 0.045 * height, direction=0),
        'Desaturate': _Level(Op.COLOR, 0.05, 0.5, -1, low=0., high=0.5),
        'GaussianBlur': _Level(Op.BLUR, 0.19, 0.1, low=0.1, high=2.),
    }


_STANDARD = ('AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'SolarizeAdd', 'Color',
             'Contrast', 'Brightness', 'Sharpness', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')
# timm's sets of operations by the name after `t`: equally likely ones, or weighted ones drawn without repetition. All
# of them are of the increasing kind, whatever `inc` says.
_SETS: dict[str, Sequence[str] | dict[str, float]] = {
    '3a': ('Solarize', 'Desaturate', 'GaussianBlur'),
    '3aw': {
        'Solarize': 6, 'Desaturate': 6, 'GaussianBlur': 6, 'Rotate': 3, 'ShearX': 2, 'ShearY': 2, 'Posterize': 1,
        'AutoContrast': 1, 'Color': 1, 'Sharpness': 1, 'Contrast': 1, 'Brightness': 1, 'Equalize': 1, 'Invert': 1},
    'weights': {
        'Rotate': 3, 'ShearX': 2, 'ShearY': 2, 'TranslateX': 1, 'TranslateY': 1, 'Color': .25, 'Sharpness': .25,
        'AutoContrast': .25, 'Solarize': .05, 'SolarizeAdd': .05, 'Contrast': .05, 'Brightness': .05,
        'Equalize': .05, 'Posterize': .05, 'Invert': .05},
}
_DEFAULTS = {'m': 10., 'n': 2., 'p': 0.5, 'mstd': 0., 'mmax': 10., 'inc': 0.}


def parse_rand(text: str) -> tuple[dict[str, float], str]:
    """The numbers of timm's `rand-...` grammar and the name after its `t` ('' without)."""
    values, chosen = dict(_DEFAULTS), ''
    for section in text.split('-')[1:]:
        if section.startswith('t'):
            chosen = section[1:]
            if chosen not in _SETS:
                raise ZooError(f'{text!r} names the unknown set of operations {section!r}.'
                               f'{nearest(section, ["t" + s for s in _SETS])} '
                               f'Expected one of {", ".join("t" + s for s in _SETS)}.')
            continue
        key, number = re.split(r'(?=[0-9.]|$)', section, maxsplit=1)
        if key not in values:
            raise ZooError(f'{text!r} has the unknown section {section!r}.{nearest(key, values)} '
                           f'Expected {", ".join(values)}, each with a number, or t with a set of operations.')
        try:
            values[key] = float(number) if key in ('p', 'mstd') else int(number)
        except ValueError:
            kind = 'a number' if key in ('p', 'mstd') else 'a whole number'
            raise ZooError(f'{text!r} needs {kind} after {key!r}: got {number!r}.') from None
    if not 0 <= values['p'] <= 1:
        raise ZooError(f'{text!r} has a probability of {values["p"]:g}: expected 0 to 1.')
    if values['n'] < 1:
        raise ZooError(f'{text!r} has no layer: expected n1 or more.')
    return values, chosen


class RandAugment(Policy):
    """timm's RandAugment from its grammar; translations are parts of the image's `size`, `fill` its mean colour."""

    def __init__(self, text: str, size: tuple[int, int], interpolation: str, fill: Sequence[float]) -> None:
        values, chosen = parse_rand(text)
        names = _SETS[chosen] if chosen else _STANDARD
        levels = [_levels(bool(values['inc']) or bool(chosen), size)[name] for name in names]
        self.count, self.prob = int(values['n']), values['p']
        self.magnitude, self.spread, self.most = values['m'], values['mstd'], values['mmax'] or 10.
        self.known = frozenset(level.op for level in levels)
        self.ops = Constant([int(level.op) for level in levels])
        # [slope, offset, direction, whole, low, high] of each
        self.table = Constant([list(column) for column in zip(*(level[1:] for level in levels), strict=True)],
                              torch.float32)
        weights = list(names.values()) if isinstance(names, dict) else []
        self.weights, self.choices = Constant([[w] for w in weights], torch.float32), len(levels)
        self.weighted = bool(weights)
        if weights and self.count > len(weights):
            raise ZooError(f'{text!r} has {self.count} layers, but t{chosen} draws its {len(weights)} operations '
                           f'without repetition: set n to at most {len(weights)}.')
        self.interpolation, self.fill = interpolation, Constant(fill, torch.float32)
        self.uniforms = (len(weights) or self.count) + 4 * self.count

    def layers(self, u: Tensor) -> list[Layer]:
        u, rest = u[:-4 * self.count], u[-4 * self.count:]
        if self.weighted:       # the smallest of exponential times at these rates: drawn one by one, none twice
            which = (-(1 - u).log() / self.weights.on(u.device)).topk(self.count, 0, largest=False)[1]
        else:
            which = (u * self.choices).long()
        on, noise, sign, cubic = rest.view(4, self.count, -1)
        op = self.ops.on(u.device)[which] * (on < self.prob)
        slope, offset, direction, whole, low, high = self.table.on(u.device)[:, which]
        value = slope * self._level(noise)
        value = torch.where(whole > 0, (value + 1e-4).floor(), value)      # 3.9999998 in float32 is 4
        direction = torch.where(direction == 0, torch.where(sign < 0.5, -1., 1.), direction)
        arg = torch.minimum(torch.maximum(offset + direction * value, low), high)
        fill = self.fill.on(u.device)
        return [Layer(o, a, choose_kernel(self.interpolation, c), fill) for o, a, c in zip(op, arg, cubic, strict=True)]

    def _level(self, noise: Tensor) -> Tensor:
        """The magnitude with its spread (above 100: uniform up to the magnitude), from uniform numbers."""
        if self.spread > 100:
            level = noise * self.magnitude
        else:       # away from 0, whose normal number is infinite
            level = torch.erfinv(2 * noise.clamp_min(2 ** -25) - 1) * (math.sqrt(2) * self.spread) + self.magnitude
        return level.clamp(0, self.most)


# ---- AutoAugment

# Each line is a sub-policy, one of which is drawn: two operations with their probability and magnitude (of 0 to 9).
_POLICIES = {
    'imagenet': '''
        Posterize 0.4 8, Rotate 0.6 9
        Solarize 0.6 5, AutoContrast 0.6
        Equalize 0.8, Equalize 0.6
        Posterize 0.6 7, Posterize 0.6 6
        Equalize 0.4, Solarize 0.2 4
        Equalize 0.4, Rotate 0.8 8
        Solarize 0.6 3, Equalize 0.6
        Posterize 0.8 5, Equalize 1
        Rotate 0.2 3, Solarize 0.6 8
        Equalize 0.6, Posterize 0.4 6
        Rotate 0.8 8, Color 0.4 0
        Rotate 0.4 9, Equalize 0.6
        Equalize 0, Equalize 0.8
        Invert 0.6, Equalize 1
        Color 0.6 4, Contrast 1 8
        Rotate 0.8 8, Color 1 2
        Color 0.8 8, Solarize 0.8 7
        Sharpness 0.4 7, Invert 0.6
        ShearX 0.6 5, Equalize 1
        Color 0.4 0, Equalize 0.6
        Equalize 0.4, Solarize 0.2 4
        Solarize 0.6 5, AutoContrast 0.6
        Invert 0.6, Equalize 1
        Color 0.6 4, Contrast 1 8
        Equalize 0.8, Equalize 0.6
    ''',
    'cifar10': '''
        Invert 0.1, Contrast 0.2 6
        Rotate 0.7 2, TranslateX 0.3 9
        Sharpness 0.8 1, Sharpness 0.9 3
        ShearY 0.5 8, TranslateY 0.7 9
        AutoContrast 0.5, Equalize 0.9
        ShearY 0.2 7, Posterize 0.3 7
        Color 0.4 3, Brightness 0.6 7
        Sharpness 0.3 9, Brightness 0.7 9
        Equalize 0.6, Equalize 0.5
        Contrast 0.6 7, Sharpness 0.6 5
        Color 0.7 7, TranslateX 0.5 8
        Equalize 0.3, AutoContrast 0.4
        TranslateY 0.4 3, Sharpness 0.2 6
        Brightness 0.9 6, Color 0.2 8
        Solarize 0.5 2, Invert 0
        Equalize 0.2, AutoContrast 0.6
        Equalize 0.2, Equalize 0.6
        Color 0.9 9, Equalize 0.6
        AutoContrast 0.8, Solarize 0.2 8
        Brightness 0.1 3, Color 0.7 0
        Solarize 0.4 5, AutoContrast 0.9
        TranslateY 0.9 9, TranslateY 0.7 9
        AutoContrast 0.9, Solarize 0.8 3
        Equalize 0.8, Invert 0.1
        TranslateY 0.7 9, AutoContrast 0.9
    ''',
    'svhn': '''
        ShearX 0.9 4, Invert 0.2
        ShearY 0.9 8, Invert 0.7
        Equalize 0.6, Solarize 0.6 6
        Invert 0.9, Equalize 0.6
        Equalize 0.6, Rotate 0.9 3
        ShearX 0.9 4, AutoContrast 0.8
        ShearY 0.9 8, Invert 0.4
        ShearY 0.9 5, Solarize 0.2 6
        Invert 0.9, AutoContrast 0.8
        Equalize 0.6, Rotate 0.9 3
        ShearX 0.9 4, Solarize 0.3 3
        ShearY 0.8 8, Invert 0.7
        Equalize 0.9, TranslateY 0.6 6
        Invert 0.9, Equalize 0.6
        Contrast 0.3 3, Rotate 0.8 4
        Invert 0.8, TranslateY 0 2
        ShearY 0.7 6, Solarize 0.4 8
        Invert 0.6, Rotate 0.8 4
        ShearY 0.3 7, TranslateX 0.9 3
        ShearX 0.1 6, Invert 0.6
        Solarize 0.7 2, TranslateY 0.6 7
        ShearY 0.8 4, Invert 0.8
        ShearX 0.7 9, TranslateY 0.8 3
        ShearY 0.8 5, AutoContrast 0.7
        ShearX 0.7 2, Invert 0.1
    ''',
}


def _magnitudes(op: Op, level: int, size: tuple[int, int]) -> tuple[float, float]:
    """torchvision's argument at a level from 0 to 9, under either sign; in float32 as there, which truncation shows."""
    def part(start: float, end: float) -> float:
        return torch.linspace(start, end, 10)[level].item()

    if op in (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS):
        return 1 + part(0., 0.9), 1 - part(0., 0.9)
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        pixels = int(part(0., 150 / 331 * size[op == Op.TRANSLATE_X]))
        return pixels, -pixels
    if op == Op.POSTERIZE:
        return (8 - round(4 * level / 9),) * 2
    if op == Op.SOLARIZE:
        return (part(255., 0.),) * 2
    most = part(0., {Op.ROTATE: 30., Op.SHEAR_X: 0.3, Op.SHEAR_Y: 0.3}.get(op, 0.))
    return most, -most


class AutoAugment(Policy):
    """A learned policy in torchvision's meaning: the nearest pixel, black outside of the image."""
    uniforms = 5

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        names = {''.join(word.capitalize() for word in op.name.split('_')): op for op in Op}
        pairs = [[entry.split() for entry in line.split(',')] for line in _POLICIES[name].strip().splitlines()]
        ops = [[names[entry[0]] for entry in pair] for pair in pairs]
        args = [[_magnitudes(names[entry[0]], int((entry[2:] or '0')[0]), size) for entry in pair] for pair in pairs]
        self.known = frozenset(op for pair in ops for op in pair)
        self.ops, self.args = Constant(ops), Constant(args, torch.float32)                  # [25, 2], [25, 2, sign]
        self.probs = Constant([[float(entry[1]) for entry in pair] for pair in pairs])

    def layers(self, u: Tensor) -> list[Layer]:
        ops, probs, args = (v.on(u.device) for v in (self.ops, self.probs, self.args))
        which = (u[0] * len(ops)).long()
        op = ops[which].T * (u[1:3] < probs[which].T)
        plus, minus = args[which].permute(2, 1, 0)
        arg = torch.where(u[3:5] < 0.5, minus, plus)
        return [Layer(o, a, 'nearest') for o, a in zip(op, arg, strict=True)]


def make_policy(text: str, size: tuple[int, int], interpolation: str, fill: Sequence[float]) -> Policy:
    """The policy of a name or of the `rand-...` grammar, for images of `size` (the last two are RandAugment's)."""
    if text.split('-')[0] == 'rand':
        return RandAugment(text, size, interpolation, fill)
    if text not in _POLICIES:
        raise ZooError(f'There is no augmentation policy {text!r}.{nearest(text, [*_POLICIES, "rand"])} '
                       f'Expected {", ".join(_POLICIES)} or timm\'s grammar, as rand-m9-mstd0.5-inc1.')
    return AutoAugment(text, size)
