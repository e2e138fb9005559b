"""The `training` part of benchmark.py: our training beside a plain loop, each in a process of its own, in turn.

Ours is what `tinyvit-zoo train` runs: batches from memory, the recipe's augmentation, the model, the optimizer, the
memory settings. The plain loop has the plain model (tools/plain.py), torch's AdamW as it comes, and batches that were
made ready beforehand: nothing to load, nothing to augment.
"""
from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain import plain
from torch import Tensor

from tinyvit_zoo.data.loaders import make_batches
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.recipes import Recipe, find_recipe
from tinyvit_zoo.training.distributed import World
from tinyvit_zoo.training.loop import Loop
from tinyvit_zoo.training.memory import keep_freed_memory
from tinyvit_zoo.training.optimize import autocast, number_format
from tinyvit_zoo.training.supervised import supervised_batches, supervised_task
from tinyvit_zoo.training.train import data_cfg, make_model

STEPS = 10


def bench_training(names: list[str], precisions: list[str], device: str, seconds: float) -> dict[Any, dict[str, Any]]:
    """Times of ten steps by (recipe, batch size, precision) and contender, the plain loop first."""
    results = {}
    for name, precision in itertools.product(names, precisions):
        with contender(Path(__file__), 'plain', name, precision, device) as plain_loop, \
                contender(Path(__file__), 'ours', name, precision, device) as ours:
            times: dict[str, list[float]] = {'plain': [], 'ours': []}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times['ours']) < 3:
                for key, ask in (('plain', plain_loop), ('ours', ours)):
                    times[key].append(ask()[0])
        results[name, find_recipe(name).batch_size, precision] = times
    return results


@contextmanager
def contender(script: Path, *args: str) -> Iterator[Any]:
    """A function that has the process of a script do its steps and returns what it says of them, seconds first."""
    process = subprocess.Popen(
        [sys.executable, str(script), *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout

    def ask() -> list[float]:
        process.stdin.write('go\n')
        process.stdin.flush()
        return [float(value) for value in process.stdout.readline().split()]

    try:
        process.stdout.readline()  # it has warmed up
        yield ask
    finally:
        process.stdin.close()
        process.wait()


def _batches(recipe: Recipe, cfg: dict[str, Any], source: Any, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    batches = supervised_batches(recipe, source.train, cfg, world)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from batches


def _ours(recipe: Recipe, cfg: dict[str, Any], source: Any, world: World, dtype: torch.dtype | None) -> Any:
    keep_freed_memory(world.device)
    network = make_model(recipe, cfg).to(world.device).train()
    task = supervised_task(recipe, network, cfg, False, {}, 1)
    batches = make_batches(source.train, cfg['input_size'][1:], recipe.batch_size, world.device, train=True)
    loop = Loop(task, batches, recipe, None, world, dtype)  # type: ignore[arg-type]
    ready = _batches(recipe, cfg, source, world)
    return lambda: loop.train_step(*next(ready))


def _plain(recipe: Recipe, cfg: dict[str, Any], source: Any, world: World, dtype: torch.dtype | None) -> Any:
    network = plain(make_model(recipe, cfg)).to(world.device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    ready = itertools.cycle([
        (images.float() / 255 - 0.5, labels) for images, labels in itertools.islice(
            _batches(recipe, cfg, source, world), STEPS)])

    def step() -> None:
        x, labels = next(ready)
        with autocast(world.device, dtype):
            loss = F.cross_entropy(network(x), labels, label_smoothing=recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main(kind: str, name: str, precision: str, device: str) -> None:
    """A contender: for each line that comes, ten steps, and the seconds they took."""
    world, recipe, source = World(0, 1, torch.device(device)), find_recipe(name), open_source('digits')
    cfg = data_cfg(recipe, source)
    step = {'ours': _ours, 'plain': _plain}[kind](recipe, cfg, source, world, number_format(precision, world.device))
    for _ in range(3):
        step()
    print('ready', flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        if world.device.type == 'cuda':
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
