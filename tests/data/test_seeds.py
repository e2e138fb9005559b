"""Random numbers as a function of integers."""
from __future__ import annotations

import random

import numpy as np
import torch

from tinyvit_zoo.data.seeds import derived, seeded


def test_seeded_draws_repeat_and_differ() -> None:
    drawn = []
    for numbers in ((1, 2), (1, 2), (2, 1), (1, 3), (-1, 2)):
        with seeded(*numbers):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4
    assert len({derived(0, i) for i in range(1000)}) == 1000
