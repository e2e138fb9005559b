"""The `training` part of benchmark.py: our training beside a plain loop, each in a process of its own, in turn.

Ours is what `tinyvit-zoo train` runs: batches from memory, the recipe's augmentation, the model, the optimizer, the
memory settings. On a CPU once more with a process of one thread for each core, which share the batch, as `torchrun`
starts them; on a GPU once more without CUDA graphs, and compiled. The plain loop has the plain model (tools/plain.py),
torch's AdamW as it comes, and batches that were made ready beforehand: nothing to load, nothing to augment.
"""
from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from plain import plain
from torch import Tensor

from tinyvit_zoo.data.batches import make_batches
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.kernels.memory import keep_freed_memory
from tinyvit_zoo.measure.comparison import seconds as step_seconds
from tinyvit_zoo.measure.counting import count
from tinyvit_zoo.methods import Supervised
from tinyvit_zoo.recipes import Recipe, find_recipe
from tinyvit_zoo.runtime.world import World, autocast, autocast_dtype, fast_kernels, join_world
from tinyvit_zoo.training.loop import Loop
from tinyvit_zoo.training.run_dir import Run
from tinyvit_zoo.training.train import data_cfg

STEPS = 10


def bench_training(names: list[str], precisions: list[str], batches: list[int], device: str, seconds: float,
                   ) -> dict[Any, dict[str, Any]]:
    """Times of ten steps by (recipe, batch size, precision) and contender, the plain loop first."""
    results = {}
    for name, precision, batch in itertools.product(names, precisions, batches or [0]):
        batch = batch or find_recipe(name).batch_size
        with ExitStack() as stack:
            asks = {label: stack.enter_context(contender(
                Path(__file__), kind, name, precision, device, str(batch), processes=processes))
                for label, (kind, processes) in _contenders(batch, device, torch.get_num_threads()).items()}
            times: dict[str, list[float]] = {label: [] for label in asks}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times['ours']) < 3:
                for label, ask in asks.items():
                    times[label].append(ask()[0])
        results[name, batch, precision] = times
    return results


def step_flops(name: str, batch: int) -> float:
    """Of the matrix products and convolutions of a step: three times those of inference."""
    recipe = find_recipe(name)
    model = timm.create_model(recipe.model, img_size=recipe.img_size, device='meta', **recipe.model_args)
    return 6. * count(model).macs * batch


def peak_flops(device: torch.device, precision: str) -> float:
    """Measure those of a large matrix product in a second."""
    side = 8192 if device.type == 'cuda' else 2048
    x = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == 'bf16' else torch.float32)
    return 2. * side ** 3 / min(step_seconds(lambda: x @ x, device) for _ in range(10))


def _contenders(batch: int, device: str, threads: int) -> dict[str, tuple[str, int]]:
    """What each runs, and in how many processes."""
    found = {'plain': ('plain', 1), 'ours': ('ours', 1)}
    if device != 'cpu':
        found |= {'ours, no graphs': ('launches', 1), 'ours, compiled': ('compiled', 1)}
    elif threads > 1 and batch % threads == 0:
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


def _ours(recipe: Recipe, cfg: dict[str, Any], source: Any, world: World, dtype: torch.dtype | None, kind: str) -> Any:
    network = Supervised.make_network(recipe, cfg, world.device).train()
    task = Supervised(recipe, cfg, world, dtype, network)
    batches = make_batches(source.train, cfg['input_size'][1:], recipe.batch_size, world.device, train=True)
    if kind == 'compiled':
        task.views.compile()
    loop = Loop(task, batches, Run(Path(), quiet=True), kind == 'compiled', graphs=kind != 'launches')
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


def main(kind: str, name: str, precision: str, device: str, batch: str) -> None:
    """A contender: for each line that comes, ten steps, and the seconds they took."""
    with join_world(device) as world, ExitStack() as stack:
        recipe, source = replace(find_recipe(name), batch_size=int(batch)), open_source('digits')
        cfg, dtype = data_cfg(recipe, source), autocast_dtype(precision, world.device)
        if kind == 'plain':
            step = _plain(recipe, cfg, source, world, dtype)
        else:
            stack.enter_context(keep_freed_memory(world.device))
            stack.enter_context(fast_kernels(world.device, dtype))
            step = _ours(recipe, cfg, source, world, dtype, kind)
        for _ in range(5):      # the fourth captures graphs
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
