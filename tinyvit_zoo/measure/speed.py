"""Time models side by side: contenders take turns, so that a noisy machine affects all of them."""
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.world import cpu_name
from ..version import __version__

Step = Callable[[], object]


def machine(device: torch.device) -> dict[str, Any]:
    """Return the device, versions and date of a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'timm': timm.__version__,
            'tinyvit_zoo': __version__, 'date': time.strftime('%Y-%m-%d')}


def make_step(model: nn.Module, images: Tensor, train: bool, bf16: bool,
              prepare: Callable[[Tensor], Tensor] = lambda images: images) -> Step:
    """Return a function that passes a batch through `prepare` and the model; in training with loss and backward."""
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def inference() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            return model(prepare(images))

    def training() -> object:
        x = prepare(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(x), labels)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss

    return training if train else inference


def seconds(step: Step, device: torch.device) -> float:
    """Time one call; on a GPU by its events, after the queue is empty."""
    if device.type != 'cuda':
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def rounds(steps: dict[str, Step], device: torch.device, budget: float) -> dict[str, list[float]]:
    """Time the contenders in turn for about `budget` seconds, 3 rounds or more, after two calls of warm-up."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    return times


def summarise(times: dict[str, list[float]], batch: int) -> list[dict[str, Any]]:
    """Return a row for each contender; ratios of speed are to the first of them, round by round."""
    baseline = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = sorted(b / v for b, v in zip(baseline, values, strict=True))
        rows.append({'contender': name, 'images_per_second': batch / statistics.median(values),
                     'median_ms': 1e3 * statistics.median(values),
                     'p95_ms': 1e3 * sorted(values)[math.ceil(0.95 * len(values)) - 1],
                     'ratio': statistics.median(ratios), 'ratio_range': [ratios[0], ratios[-1]], 'rounds': len(values)})
    return rows
