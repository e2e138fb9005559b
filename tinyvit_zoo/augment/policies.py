"""Choose the operation of each image and its strength: RandAugment, AutoAugment, colour jitter, single operations.

A policy turns given uniform numbers into layers of `ops`. RandAugment is timm's, AutoAugment torchvision's.
"""
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import transforms

from ..errors import ZooError, nearest
from .geometry import Kernel
from .ops import Constant, Layer, Op
from .spec import LEARNED

_OPS = {''.join(word.capitalize() for word in op.name.split('_')): op for op in Op}     # by torchvision's name


class Policy:
    """Base class: `layers` takes [uniforms, B] numbers in [0, 1) and returns layers of an operation an image each."""
    uniforms: int
    known: tuple[Op, ...]

    def layers(self, u: Tensor) -> list[Layer]:
        raise NotImplementedError


def choose_kernel(interpolation: str, u: Tensor) -> Kernel:
    """Return `interpolation`, or for 'random' one of the two for each image."""
    return u < 0.5 if interpolation == 'random' else interpolation


class Single(Policy):
    """One operation with a probability, its argument uniform between two bounds."""
    uniforms = 2

    def __init__(self, op: Op, prob: float, low: float = 0., high: float = 0.) -> None:
        self.op, self.prob, self.low, self.high, self.known = op, prob, low, high, (op,)

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
        self.prob, self.known = prob, tuple(op for op, _, _ in active)
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


class _Level(NamedTuple):
    """The argument at a level from 0 to 10: offset + direction (0: random) * slope * level, truncated and clamped."""
    slope: float = 0.
    offset: float = 0.
    direction: int = 1
    whole: bool = False
    low: float = -math.inf
    high: float = math.inf


def _levels(increasing: bool, size: tuple[int, int]) -> dict[str, _Level]:
    """Return timm's operations; `increasing` ones always grow in strength with the level, as the older do not."""
    enhance = _Level(0.09, 1., 0, low=0.1) if increasing else _Level(0.18, 0.1)
    return {
        **dict.fromkeys(('AutoContrast', 'Equalize', 'Invert'), _Level()),
        **dict.fromkeys(('Color', 'Contrast', 'Brightness', 'Sharpness'), enhance),
        **dict.fromkeys(('ShearX', 'ShearY'), _Level(0.03, direction=0)),
        'Rotate': _Level(3., direction=0),
        'Posterize': _Level(0.4, 4 * increasing, 1 - 2 * increasing, True, 0., 8.),
        'Solarize': _Level(25.6, 256 * increasing, 1 - 2 * increasing, True, 0., 256.),
        'SolarizeAdd': _Level(11., whole=True, high=128.),
        'TranslateX': _Level(0.045 * size[1], direction=0),
        'TranslateY': _Level(0.045 * size[0], direction=0),
        'Desaturate': _Level(0.05, 0.5, -1, low=0., high=0.5),
        'GaussianBlur': _Level(0.19, 0.1, low=0.1, high=2.),
    }


_OF_TIMM = {**_OPS, 'Desaturate': Op.COLOR, 'GaussianBlur': Op.BLUR}
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
    """Return the numbers of timm's `rand-...` grammar and the name after its `t` ('' without)."""
    values, chosen = dict(_DEFAULTS), ''
    for section in text.split('-')[1:]:
        if section.startswith('t'):
            chosen, sets = section[1:], [f't{name}' for name in _SETS]
            if section not in sets:
                raise ZooError(f'{text!r} names the unknown set of operations {section!r}.{nearest(section, sets)} '
                               f'Expected one of {", ".join(sets)}.')
            continue
        key, number = re.split(r'(?=[0-9.]|$)', section, maxsplit=1)
        if key not in values:
            raise ZooError(f'{text!r} has the unknown section {section!r}.{nearest(key, values)} '
                           f'Expected {", ".join(values)}, each with a number, or t with a set of operations.')
        kind = 'a number' if key in ('p', 'mstd') else 'a whole number'
        try:
            values[key] = float(number) if kind == 'a number' else int(number)
        except ValueError:
            raise ZooError(f'{text!r} needs {kind} after {key!r}: got {number!r}.') from None
    if not 0 <= values['p'] <= 1:
        raise ZooError(f'{text!r} has a probability of {values["p"]:g}: expected 0 to 1.')
    if not 1 <= values['n'] <= 100:
        raise ZooError(f'{text!r} has {values["n"]:.0f} layers: expected n1 to n100.')
    return values, chosen


class RandAugment(Policy):
    """timm's RandAugment from its grammar; translations are parts of the image's `size`, `fill` its mean colour."""

    def __init__(self, text: str, size: tuple[int, int], interpolation: str, fill: Sequence[float]) -> None:
        values, chosen = parse_rand(text)
        names = _SETS[chosen] if chosen else _STANDARD
        levels = _levels(bool(values['inc']) or bool(chosen), size)
        self.count, self.prob = int(values['n']), values['p']
        self.magnitude, self.spread, self.most = values['m'], values['mstd'], values['mmax'] or 10.
        self.known = tuple(_OF_TIMM[name] for name in names)
        self.ops = Constant([int(_OF_TIMM[name]) for name in names])
        # [slope, offset, direction, whole, low, high] of each
        self.table = Constant(list(zip(*(levels[name] for name in names), strict=True)), torch.float32)
        weights = list(names.values()) if isinstance(names, dict) else []
        self.weights, self.choices = Constant([[w] for w in weights], torch.float32), len(names)
        self.weighted = bool(weights)
        if weights and self.count > len(weights):
            raise ZooError(f'{text!r} has {self.count} layers, but t{chosen} repeats no operation: use n{len(weights)} '
                           f'at most.')
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
        """Return the magnitude with its spread (above 100: uniform up to the magnitude), from uniform numbers."""
        if self.spread > 100:
            level = noise * self.magnitude
        else:       # away from 0, whose normal number is infinite
            level = torch.erfinv(2 * noise.clamp_min(2 ** -25) - 1) * (math.sqrt(2) * self.spread) + self.magnitude
        return level.clamp(0, self.most)


def _magnitudes(op: Op, level: int, levels: Tensor, signed: bool) -> tuple[float, float]:
    """Return the argument under either sign, from torchvision's magnitudes by level (a scalar where it has none)."""
    value = levels[level].item() if levels.ndim else 0.
    if op in (Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.SHARPNESS):
        return 1 + value, 1 - value
    if op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        value = int(value)
    return value, -value if signed else value


class AutoAugment(Policy):
    """torchvision's learned policies, one of whose 25 pairs of operations is drawn: nearest pixel, black outside."""
    uniforms = 5

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        learned = transforms.AutoAugment(LEARNED[name])
        space = learned._augmentation_space(10, size)
        args = [[_magnitudes(_OPS[op], level or 0, *space[op]) for op, _, level in pair] for pair in learned.policies]
        ops = [[_OPS[op] for op, _, _ in pair] for pair in learned.policies]
        self.known = tuple(op for pair in ops for op in pair)
        self.ops, self.probs = Constant(ops), Constant([[prob for _, prob, _ in pair] for pair in learned.policies])
        self.args = Constant(args, torch.float32)                                                       # [25, 2, sign]

    def layers(self, u: Tensor) -> list[Layer]:
        ops, probs, args = (v.on(u.device) for v in (self.ops, self.probs, self.args))
        which = (u[0] * len(ops)).long()
        op = ops[which].T * (u[1:3] < probs[which].T)
        plus, minus = args[which].permute(2, 1, 0)
        arg = torch.where(u[3:5] < 0.5, minus, plus)
        return [Layer(o, a, 'nearest') for o, a in zip(op, arg, strict=True)]


def make_policy(text: str, size: tuple[int, int], interpolation: str, fill: Sequence[float]) -> Policy:
    """Make the policy of a name or of the `rand-...` grammar, for images of `size`; the last two are RandAugment's."""
    if text.split('-')[0] == 'rand':
        return RandAugment(text, size, interpolation, fill)
    if text not in LEARNED:
        raise ZooError(f'There is no augmentation policy {text!r}.{nearest(text, [*LEARNED, "rand"])} '
                       f'Expected {", ".join(LEARNED)} or timm\'s grammar, e.g. rand-m9-mstd0.5-inc1.')
    return AutoAugment(text, size)
