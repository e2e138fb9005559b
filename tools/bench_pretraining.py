"""The `pretraining` part of benchmark.py: a step of each method beside a supervised one of the same encoder.

A step is the loop's: views (or the augmentation) of the same uint8 images, forward, backward, optimizer, teacher. Each
contender runs in a process of its own, so that its memory is its own; they take turns.
"""
from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from bench_training import contender

from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.kernels.memory import keep_freed_memory
from tinyvit_zoo.measure.comparison import summarise
from tinyvit_zoo.methods import METHODS, SelfSupervised, Supervised
from tinyvit_zoo.methods.self_supervised import make_encoder
from tinyvit_zoo.recipes import PRETRAINING_PRESETS, Recipe
from tinyvit_zoo.runtime.world import World, autocast_dtype
from tinyvit_zoo.training.loop import Loop
from tinyvit_zoo.training.own import pretraining_recipe

STEPS = 3
SUPERVISED = 'supervised'


def add_pretraining(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', nargs='+', metavar='MODEL', help='models of the zoo')
    parser.add_argument('--methods', nargs='+', choices=list(PRETRAINING_PRESETS), metavar='METHOD',
                        help=f'of {", ".join(PRETRAINING_PRESETS)} (default: those that take the model)')
    parser.add_argument('--precision', choices=['fp32', 'bf16'], default='bf16')
    parser.add_argument('--batch-size', type=int, default=128)


def check_pretraining(args: argparse.Namespace) -> None:
    for name in args.names:
        for method in (SUPERVISED, *(args.methods or ())):
            _loop(method, name, args.batch_size, World(0, 1, torch.device('cpu')), None)


def bench_pretraining(args: argparse.Namespace, device: torch.device, say: Callable[[dict[str, Any]], None]) -> None:
    for model in args.names:
        times, memory = _side_by_side(model, args.methods or _possible(model), args, device)
        for row in summarise(times, STEPS * args.batch_size):
            say({'model': model, 'precision': args.precision, 'batch': args.batch_size, **row,
                 'memory_bytes': memory[row['contender']]})


def _side_by_side(
        model: str, methods: list[str], args: argparse.Namespace, device: torch.device,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Times of STEPS steps by contender, the supervised one first, and the memory of each in bytes."""
    with ExitStack() as stack:
        asks = {name: stack.enter_context(contender(
            Path(__file__), name, model, args.precision, str(args.batch_size), str(device)))
            for name in (SUPERVISED, *methods)}
        times: dict[str, list[float]] = {name: [] for name in asks}
        memory: dict[str, float] = {}
        end = time.perf_counter() + args.seconds
        while time.perf_counter() < end or len(times[SUPERVISED]) < 3:
            for name, ask in asks.items():
                seconds, memory[name] = ask()
                times[name].append(seconds)
    return times, memory


def _possible(model: str) -> list[str]:
    """The methods that take the model."""
    found = []
    for name in PRETRAINING_PRESETS:
        with suppress(ZooError):
            _loop(name, model, 2, World(0, 1, torch.device('cpu')), None)
            found.append(name)
    return found


class _Length:
    """In place of batches: how many make an epoch."""

    def __len__(self) -> int:
        return 100


def _loop(name: str, model: str, batch_size: int, world: World, dtype: torch.dtype | None) -> tuple[Loop, int]:
    """The training, and the size of its images."""
    recipe = pretraining_recipe('mae_small' if name == SUPERVISED else name, model)
    cfg = {'input_size': (3, recipe.img_size, recipe.img_size), 'mean': (0.5,) * 3, 'std': (0.25,) * 3,
           'num_classes': 10}
    if name == SUPERVISED:
        supervised = Recipe(
            name=recipe.name, about='', img_size=recipe.img_size, batch_size=batch_size, opt=recipe.opt,
            momentum=recipe.momentum, lr=recipe.lr, weight_decay=recipe.weight_decay, flip=recipe.flip,
            crop_scale=recipe.crop_scale, crop_interpolation=recipe.crop_interpolation)
        network = timm.create_model(model, num_classes=10, **recipe.model_args)
        task: Any = Supervised(supervised, cfg, world, dtype, network.to(world.device).train())
        return Loop(task, _Length(), None), recipe.img_size  # type: ignore[arg-type]
    recipe = replace(recipe, batch_size=batch_size)
    args = dict(recipe.method_args)
    if name == 'd_mae':  # a teacher of the same size, with random weights: the time is that of any
        args['teacher'] = make_encoder(recipe).to(world.device)
    method = METHODS[name](make_encoder(recipe), **args).to(world.device).train()
    task = SelfSupervised(recipe, cfg, world, dtype, method)
    return Loop(task, _Length(), None), recipe.img_size  # type: ignore[arg-type]


def _peak(device: torch.device) -> int:
    """Bytes: of the process on a CPU, of what is allocated on a GPU."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def main(name: str, model: str, precision: str, batch_size: str, device: str) -> None:
    """A contender: for each line that comes, some steps; says the seconds they took and its memory so far."""
    world = World(0, 1, torch.device(device))
    before = _peak(world.device)
    loop, size = _loop(name, model, int(batch_size), world, autocast_dtype(precision, world.device))
    images = torch.randint(0, 256, (int(batch_size), 3, size, size), dtype=torch.uint8).to(world.device)
    labels = torch.arange(int(batch_size), device=world.device) % 10
    loop.train_step(images, labels)
    print('ready', flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        for _ in range(STEPS):
            loop.train_step(images, labels)
            loop.step += 1
        if world.device.type == 'cuda':
            torch.cuda.synchronize()
        print(time.perf_counter() - start, _peak(world.device) - before, flush=True)


if __name__ == '__main__':
    with keep_freed_memory(torch.device(sys.argv[-1])):
        main(*sys.argv[1:])
