"""Values that a setting may have; kept beside the setting, as metadata of its field."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from ..errors import ZooError


@dataclass(frozen=True)
class Range:
    """A number, or a tuple of `length` numbers, that `fits`; None (not set) fits too."""
    expected: str
    fits: Callable[[float], bool]
    length: int = 1

    def of(self, length: int) -> Range:
        return Range(self.expected, self.fits, length)

    def check(self, **values: Any) -> None:
        """Raise ZooError for a value out of its range, or of too few or too many numbers."""
        for name, value in values.items():
            numbers = value if self.length > 1 else (value,)
            if value is not None and (
                    not isinstance(numbers, (tuple, list)) or len(numbers) != self.length or not all(
                    isinstance(number, (int, float)) and not isinstance(number, bool) and self.fits(number)
                    for number in numbers)):
                each = f'{self.length} numbers, each ' if self.length > 1 else ''
                raise ZooError(f'{name} is {value!r}, expected {each}{self.expected}.')


@dataclass(frozen=True)
class Choice:
    names: tuple[str, ...]

    def check(self, **values: Any) -> None:
        for name, value in values.items():
            if value not in self.names:
                raise ZooError(f'{name} is {value!r}, expected {" or ".join(map(repr, self.names))}.')


_MOST = 10 ** 6     # larger ones are typing errors that would run for ever or fill the memory
FROM_1 = Range('a whole number from 1 to 1,000,000', lambda v: isinstance(v, int) and 1 <= v <= _MOST)
COUNT = Range('a whole number from 0 to 1,000,000', lambda v: isinstance(v, int) and 0 <= v <= _MOST)
FROM_0 = Range('0 to 1,000,000', lambda v: 0 <= v <= _MOST)
FROM_0_TO_INFINITY = Range('0 or more', lambda v: v >= 0)
SHARE = Range('0 to 1', lambda v: 0 <= v <= 1)
PART = Range('above 0, and at most 1', lambda v: 0 < v <= 1)
BELOW_1 = Range('0 or more, and less than 1', lambda v: 0 <= v < 1)
POSITIVE = Range('above 0', lambda v: 0 < v < math.inf)
CROP = Range('0.05 to 1', lambda v: 0.05 <= v <= 1)
MEAN = Range('from -1e30 to 1e30', lambda v: abs(v) <= 1e30)
DEVIATION = Range('from 1e-30 to 1e30', lambda v: 1e-30 <= v <= 1e30)
SEED = Range('from -2**63 to 2**64 - 1, as torch takes it', lambda v: -2 ** 63 <= v < 2 ** 64)


def setting(default: Any, about: str = '', allowed: Range | Choice | None = None) -> Any:
    """Make a dataclass field with a default, a help text, and allowed values for `check_fields`."""
    metadata = {'help': about, **({'allowed': allowed} if allowed else {})}
    if default == {}:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_fields(instance: Any) -> None:
    """Raise ZooError for the first field whose value is not allowed."""
    for each in fields(instance):
        if 'allowed' in each.metadata:
            each.metadata['allowed'].check(**{each.name: getattr(instance, each.name)})
