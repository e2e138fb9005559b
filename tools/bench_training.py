"""The `training` part of benchmark.py: our training beside a plain loop, each in a process of its own, in turn.

Ours is what `tinyvit-zoo train` runs: batches from memory, the recipe's augmentation, the model, the optimizer, the
memory settings. On a CPU once more with a process of one thread for each core, which share the batch, as `torchrun`
starts them. The plain loop has the plain model (tools/plain.py), torch's AdamW as it comes, and batches that were made
ready beforehand: nothing to load, nothing to augment.
"""
from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain import plain
from torch import Tensor

from tinyvit_zoo.data.batches import make_batches
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.kernels.memory import keep_freed_memory
from tinyvit_zoo.methods import Supervised
from tinyvit_zoo.recipes import Recipe, find_recipe
from tinyvit_zoo.runtime.world import World, autocast, autocast_dtype, join_world
from tinyvit_zoo.training.loop import Loop
from tinyvit_zoo.training.train import data_cfg

STEPS = 10


def bench_training(names: list[str], precisions: list[str], device: str, seconds: float) -> dict[Any, dict[str, Any]]:
    """Times of ten steps by (recipe, batch size, precision) and contender, the plain loop first."""
    results = {}
    for name, precision in itertools.product(names, precisions):
        batch = find_recipe(name).batch_size
        with ExitStack() as stack:
            asks = {label: stack.enter_context(contender(
                Path(__file__), kind, name, precision, device, processes=processes))
                for label, (kind, processes) in _contenders(batch, device, torch.get_num_threads()).items()}
            times: dict[str, list[float]] = {label: [] for label in asks}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times['ours']) < 3:
                for label, ask in asks.items():
                    times[label].append(ask()[0])
        results[name, batch, precision] = times
    return results


def _contenders(batch: int, device: str, threads: int) -> dict[str, tuple[str, int]]:
    """What each runs, and in how many processes."""
    found = {'plain': ('plain', 1), 'ours': ('ours', 1)}
    if device == 'cpu' and threads > 1 and batch % threads == 0:
        found[f'ours, {threads} processes'] = 'ours', threads
    return found


@contextmanager
def contender(script: Path, *args: str, processes: int = 1) -> Iterator[Any]:
    """A function that has the process of a script do its steps and returns what it says of them, seconds first."""
    command, environment = [sys.executable, str(script), *args], dict(os.environ)
    if processes > 1:  # the first of them reads and writes
        command[1:1] = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
        environment['OMP_NUM_THREADS'] = '1'
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
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
    batches = make_batches(source.train, cfg['input_size'][1:], recipe.batch_size, world.device, train=True,
                           seed=recipe.seed, rank=world.rank, world_size=world.size)
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from batches


def _ours(recipe: Recipe, cfg: dict[str, Any], source: Any, world: World, dtype: torch.dtype | None) -> Any:
    network = Supervised.make_network(recipe, cfg, world.device).train()
    task = Supervised(recipe, cfg, world, dtype, network)
    batches = make_batches(source.train, cfg['input_size'][1:], recipe.batch_size, world.device, train=True)
    loop = Loop(task, batches, None)  # type: ignore[arg-type]
    ready = _batches(recipe, cfg, source, world)
    return lambda: loop.train_step(*next(ready))


def _plain(recipe: Recipe, cfg: dict[str, Any], source: Any, world: World, dtype: torch.dtype | None) -> Any:
    network = plain(Supervised.make_network(recipe, cfg, world.device)).to(world.device).train()
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
    with join_world(device) as world, keep_freed_memory(world.device) if kind == 'ours' else nullcontext():
        recipe, source = find_recipe(name), open_source('digits')
        cfg, dtype = data_cfg(recipe, source), autocast_dtype(precision, world.device)
        step = {'ours': _ours, 'plain': _plain}[kind](recipe, cfg, source, world, dtype)
        for _ in range(3):
            step()
        if world.first:
            print('ready', flush=True)
        while world.any(world.first and bool(sys.stdin.readline())):
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            if world.device.type == 'cuda':
                torch.cuda.synchronize()
            if world.first:
                print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
    main(*sys.argv[1:])
