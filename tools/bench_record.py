"""The `record` part of benchmark.py: the time that a recipe trains for, and the accuracy it reaches, over seeds.

The images lie on the device before the clock starts; evaluation and saving are not timed. A first training, which
compiles and chooses kernels, does not count.
"""
from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tinyvit_zoo.cli._options import positive
from tinyvit_zoo.recipes import find_recipe
from tinyvit_zoo.recipes.settings import override
from tinyvit_zoo.runtime.world import World
from tinyvit_zoo.training.run_dir import read_log
from tinyvit_zoo.training.train import Options, train


def add_record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', nargs='+', metavar='RECIPE', help='names of `tinyvit-zoo recipes`')
    parser.add_argument('--data', metavar='SOURCE', required=True, help='as `tinyvit-zoo train` takes it')
    parser.add_argument('--runs', type=positive, default=10, metavar='N', help='seeds')
    parser.add_argument('--target', type=float, default=94., metavar='TOP1')
    parser.add_argument('--epochs', type=positive, metavar='N', help='default: those of the recipe')
    parser.add_argument('--precision', default='auto', choices=['auto', 'fp32', 'bf16'])
    parser.add_argument('--compile', action='store_true', help='the model and the augmentation, by torch.compile')


def bench_record(args: argparse.Namespace, device: torch.device, say: Callable[[dict[str, Any]], None]) -> None:
    for name in args.names:
        recipe = override(find_recipe(name), {'epochs': args.epochs} if args.epochs else {})
        seconds, top1 = [], []
        with tempfile.TemporaryDirectory() as folder:
            for run in range(-1, args.runs):
                options = Options(Path(folder, str(run)), args.data, precision=args.precision, compile=args.compile,
                                  eval_every=recipe.total_epochs, checkpoint_minutes=float('inf'))
                result = train(replace(recipe, seed=max(run, 0)), options, World(0, 1, device))
                if run >= 0:
                    seconds.append(sum(row['seconds'] for row in read_log(options.output)))
                    top1.append(result['figures']['test']['top1'])
        say({'recipe': name, 'n': args.runs, 'epochs': recipe.total_epochs, 'target': args.target,
             'reached': sum(value >= args.target for value in top1), 'all_top1': top1, 'all_seconds': seconds,
             **_spread('top1', top1), **_spread('seconds', seconds)})


def _spread(name: str, values: list[float]) -> dict[str, float]:
    return {name: statistics.fmean(values), f'{name}_std': statistics.stdev(values) if len(values) > 1 else 0.}
