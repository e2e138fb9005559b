"""Make random numbers a function of a few integers, so that they can be drawn again anywhere."""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derived(*numbers: int) -> int:
    """Derive a seed of 64 bits from several numbers; near numbers give unrelated seeds."""
    return int(np.random.SeedSequence([n % 2 ** 64 for n in numbers]).generate_state(1, np.uint64)[0])


def generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived(*numbers))


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed `random`, NumPy and torch (on the CPU) by `numbers` inside; restore their states after."""
    seed = derived(*numbers)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would reach for every accelerator
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
