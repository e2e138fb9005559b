"""Contenders take turns, and times are those of the steps."""
from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from tinyvit_zoo.measure import comparison as timing

CPU = torch.device('cpu')


def test_ratios_and_percentiles() -> None:
    first, second = timing.summarise({'a': [2., 4., 6.], 'b': [1., 1., 3.]}, 12)
    assert first['images_per_second'] == 3 and first['ratio'] == 1 and first['ratio_range'] == [1, 1]
    assert second['images_per_second'] == 12 and second['ratio'] == 2 and second['ratio_range'] == [2, 4]
    assert second['median_ms'] == 1000 and second['p95_ms'] == 3000
    row, = timing.summarise({'a': [float(i) for i in range(100, 0, -1)]}, 1)
    assert row['p95_ms'] == 95_000


def test_contenders_take_turns_and_the_time_is_theirs() -> None:
    calls: list[str] = []

    def sleeper(name: str, seconds: float) -> Callable[[], object]:
        return lambda: (calls.append(name), time.sleep(seconds))

    times = timing.rounds({'a': sleeper('a', 0.01), 'b': sleeper('b', 0.03)}, CPU, 0.2)
    assert calls == ['a', 'a', 'b', 'b'] + ['a', 'b'] * len(times['a'])
    assert min(times['a']) >= 0.01 and min(times['b']) >= 0.03
    assert len(timing.rounds({'a': sleeper('a', 0.)}, CPU, 0.)['a']) == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_gpu_is_timed_by_its_events() -> None:
    device, x = torch.device('cuda'), torch.zeros(4096, 4096, device='cuda')
    one, ten = (timing.rounds({'a': lambda n=n: [x @ x for _ in range(n)]}, device, 1)['a'] for n in (1, 10))
    assert sorted(ten)[len(ten) // 2] == pytest.approx(10 * sorted(one)[len(one) // 2], rel=0.3)
