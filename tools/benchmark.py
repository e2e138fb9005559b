#!/usr/bin/env python3
"""Measure speed, side by side in one run.

    tools/benchmark.py models cct_7_3x1 cct_2_3x2 --mode inference train --precision fp32 bf16 --compile
    tools/benchmark.py models sl_vit --mode train --without spt --products
    tools/benchmark.py models 'cct_7_*' --baseline resnet18 --img-size 32 --mode latency inference train
    tools/benchmark.py scaling cct_7_3x1 resnet18 --batch-sizes 1 8 64 --img-sizes 32 64 --plot scaling.png
    tools/benchmark.py augment --interpolation random
    tools/benchmark.py augment --model cct_7_3x1 --device cuda --precision bf16 --compile
    tools/benchmark.py training cct_2_3x2.c10_200e --precision bf16
    tools/benchmark.py record cct_7_3x1.c10_94 --data cifar10:PATH --device cuda
    tools/benchmark.py runtimes cct_2_3x2 sl_vit --batch-sizes 1 128
    tools/benchmark.py pretraining mae_vit_c10 --methods mae_small moco_v3

`models` times each model beside its plain implementation (tools/plain.py), which is first checked to give the same
logits; with --baseline all of them beside that one, with heads of as many classes. The contenders take turns, so that a
noisy machine affects all of them; the ratio is the median over the rounds, with its range. Training is a step of the
recipe without the optimizer: forward with dropout, loss, backward. On a GPU CUDA events are the clock. `--without spt`
also times the model without that option, and prints the share of time saved. `--products` also times the plain model's
matrix products and convolutions alone: their ratio is about the best that an implementation could reach. Memory is the
peak of a step with the weights: as the GPU's allocator reports, elsewhere tensors made by torch's operators.

`scaling` times models against each other over batch and image sizes.

`augment` times the batched augmentation beside timm's Pillow pipeline of the same policy (random resized crop of 0.8 to
1, flip, RandAugment, normalization) in a loader with one worker per core; with --model, a training step with it beside
one that only normalizes.

`training` times `tinyvit-zoo train` by recipe, with loading and augmentation, beside a plain loop over the plain model
on batches made in advance; each in a process of its own, ours on a CPU also with one process per core, as by
`torchrun`, on a GPU also without CUDA graphs, and compiled. It prints what share of a large matrix product's speed the
products of the step reach (tools/bench_training.py).

`pretraining` times a step of each method that supports a model, beside a supervised step with crop and flip, on the
same images, and prints the memory of each (tools/bench_pretraining.py).

`runtimes` exports each model to the formats that are installed and times their runtimes beside PyTorch, eager and
compiled, on the CPU, and prints a table in Markdown (tools/bench_runtimes.py).

`record` trains a recipe with ten seeds and prints the seconds of training, the accuracy, and how many reach the target;
evaluation, saving and a first training, which compiles, are not timed (tools/bench_record.py).
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from bench_models import add_models, add_scaling, bench_models, bench_scaling, check_models, check_scaling
from bench_pretraining import add_pretraining, bench_pretraining, check_pretraining
from bench_record import add_record, bench_record
from bench_runtimes import add_runtimes, bench_runtimes, check_runtimes
from PIL import Image
from plain import plain
from timm.data import auto_augment, create_transform
from torch.utils.data import DataLoader, Dataset

import tinyvit_zoo
from tinyvit_zoo.augment.batched import Augment, normalize
from tinyvit_zoo.augment.policies import make_policy
from tinyvit_zoo.augment.spec import AugmentSpec, posterize
from tinyvit_zoo.cli._options import duration, positive
from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.measure.comparison import machine, make_step, rounds, summarise
from tinyvit_zoo.models import check_name
from tinyvit_zoo.recipes import find_recipe
from tinyvit_zoo.runtime.files import write_whole
from tinyvit_zoo.runtime.world import join_world

Say = Callable[[dict[str, Any]], None]


class PillowImages(Dataset):
    """Arrays as Pillow images through a transform, as timm's datasets."""

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.images[index]))


def timm_loader(images: np.ndarray, args: argparse.Namespace) -> DataLoader:
    for name in ('Posterize', 'PosterizeIncreasing'):
        auto_augment.NAME_TO_OP[name] = posterize
    info = DATASETS['c10']
    transform = create_transform(
        args.img_size, is_training=True, scale=(0.8, 1.), hflip=0.5, auto_augment=args.policy, color_jitter=None,
        interpolation=args.interpolation, mean=info.mean, std=info.std)
    return DataLoader(PillowImages(images, transform), args.batch_size, shuffle=True, drop_last=True,
                      num_workers=cores(), persistent_workers=True)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def bench_augment(args: argparse.Namespace, device: torch.device, say: Say) -> None:
    info = DATASETS['c10']
    augment = Augment(AugmentSpec((args.img_size,) * 2, info.mean, info.std, flip=0.5, crop_scale=(0.8, 1.),
                                  interpolation=args.interpolation, auto_augment=args.policy))
    if args.compile:
        augment.compile()
    count = args.batch_size if args.model else max(1, args.images // args.batch_size) * args.batch_size
    pixels = np.random.RandomState(0).randint(0, 256, (count, args.img_size, args.img_size, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    generator = torch.Generator(device).manual_seed(0)
    about = {'policy': args.policy, 'interpolation': args.interpolation, 'img_size': args.img_size}
    if args.model:
        model = timm.create_model(args.model, img_size=args.img_size).to(device).train()
        model = torch.compile(model) if args.compile else model
        bf16, about = args.precision == 'bf16', {**about, 'model': args.model, 'precision': args.precision}
        steps = {'normalised': make_step(model, images, True, bf16, lambda x: normalize(x, info.mean, info.std)),
                 'augmented': make_step(model, images, True, bf16, lambda x: augment(x, generator))}
    else:
        loader = timm_loader(pixels, args)
        steps = {f'timm x{loader.num_workers}': lambda: [batch.to(device) for batch in loader],
                 'ours': lambda: [augment(batch, generator) for batch in images.split(args.batch_size)]}
    for row in summarise(rounds(steps, device, args.seconds), count):
        say({**about, 'batch': args.batch_size, **row})


def bench_trainings(args: argparse.Namespace, device: torch.device, say: Say) -> None:
    from bench_training import STEPS, bench_training, peak_flops, step_flops

    for (recipe, batch, precision), times in bench_training(
            args.names, args.precision, args.batch_sizes, args.device, args.seconds).items():
        peak, flops = peak_flops(device, precision), step_flops(recipe, batch)
        for row in summarise(times, STEPS * batch):
            say({'recipe': recipe, 'precision': precision, 'batch': batch, **row,
                 'share_of_peak': STEPS * flops / (row['median_ms'] / 1e3) / peak})


def print_row(row: dict[str, Any]) -> None:
    if 'target' in row:
        print(f'{row["recipe"]}, {row["epochs"]} epochs, n = {row["n"]}: top-1 {row["top1"]:.2f} % (deviation '
              f'{row["top1_std"]:.2f}), {row["reached"]} of {row["n"]} at {row["target"]:g} % or above, training for '
              f'{row["seconds"]:.1f} s (deviation {row["seconds_std"]:.1f})', flush=True)
        return
    low, high = row['ratio_range']
    conditions = '  '.join(str(row[key]) for key in list(row)[:list(row).index('contender')])
    details = [f'{row["rounds"]} rounds']
    if row.get('memory_bytes') is not None:
        details.append(f'{row["memory_bytes"] / 2 ** 20:.0f} MiB')
    if row.get('compile_seconds') is not None:
        details.append(f'compiled in {row["compile_seconds"]:.0f} s')
    if 'share_of_peak' in row:
        details.append(f"{row['share_of_peak']:.0%} of a large product's speed")
    if 'saved' in row:
        details.append(f'{row["saved"]:.1%} of the time of ours saved')
    print(f'{conditions}  {row["contender"]:22} {row["images_per_second"]:9.1f} images/s '
          f'{row["ratio"]:6.2f}x  [{low:.2f}, {high:.2f}]  {row["median_ms"]:.2f} ms, p95 {row["p95_ms"]:.2f}  '
          f'{", ".join(details)}', flush=True)


def check(args: argparse.Namespace) -> None:
    if args.what == 'augment':
        if args.policy.split('-')[0] != 'rand':
            raise tinyvit_zoo.ZooError(f'timm has no policy {args.policy!r} to measure against: give a rand-... one.')
        make_policy(args.policy, (args.img_size,) * 2, args.interpolation, (0.,))
        if args.model:
            check_name(args.model)
    elif args.what == 'record':
        for name in args.names:
            find_recipe(name)
    elif args.what == 'training':
        for name in args.names:
            plain(timm.create_model(find_recipe(name).model))
    else:
        {'models': check_models, 'scaling': check_scaling, 'pretraining': check_pretraining,
         'runtimes': check_runtimes}[args.what](args)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True)
    add_models(commands.add_parser('models', help='models beside plain ones, or beside a baseline'))
    add_scaling(commands.add_parser('scaling', help='models over batch and image sizes, as a plot too'))
    augment = commands.add_parser('augment', help="our augmentation beside timm's, or what it costs a training")
    augment.add_argument('--policy', default='rand-m9-mstd0.5-inc1')
    augment.add_argument('--interpolation', choices=['bilinear', 'bicubic', 'random'], default='bilinear')
    augment.add_argument('--img-size', type=int, default=32)
    augment.add_argument('--images', type=int, default=8192, help='images of a round')
    augment.add_argument('--model', metavar='NAME', help='time training steps of it, with and without')
    augment.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32', help="of the model's steps")
    augment.add_argument('--compile', action='store_true', help='the augmentation, and the model, by torch.compile')
    training = commands.add_parser('training', help='our training beside a plain loop')
    training.add_argument('names', nargs='+', metavar='RECIPE', help='names of `tinyvit-zoo recipes`')
    training.add_argument('--precision', nargs='+', choices=['fp32', 'bf16'], default=['bf16'])
    training.add_argument('--batch-sizes', nargs='+', type=positive, default=[], help="default: the recipe's")
    augment.add_argument('--batch-size', type=int, default=512)
    add_pretraining(commands.add_parser('pretraining', help='a step of each method beside a supervised one'))
    add_runtimes(commands.add_parser('runtimes', help='exported files beside PyTorch, by their runtimes'))
    add_record(commands.add_parser('record', help='the time to an accuracy, over seeds'))
    for command in commands.choices.values():
        command.add_argument('--device', default='cpu')
        command.add_argument('--seconds', type=duration, default=20., help='for each comparison (at least 3 rounds)')
        command.add_argument('--json', type=Path, metavar='FILE', help='write the results and the machine to FILE')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    results: list[dict[str, Any]] = []

    def say(row: dict[str, Any]) -> None:
        results.append(row)
        print_row(row)

    bench = {'models': bench_models, 'scaling': bench_scaling, 'augment': bench_augment, 'training': bench_trainings,
             'pretraining': bench_pretraining, 'record': bench_record, 'runtimes': bench_runtimes}
    try:
        with join_world(args.device) as world:
            check(args)
            openmp = ' '.join(f'{key}={value}' for key, value in sorted(os.environ.items())
                              if key.startswith(('OMP_', 'GOMP_', 'KMP_')))
            about = {**machine(world.device), 'OpenMP': openmp or 'as set by default',
                     'load average': round(os.getloadavg()[0], 2)}
            print(', '.join(f'{key} {value}' for key, value in about.items()))
            bench[args.what](args, world.device, say)
        if args.json:
            write_whole(args.json, json.dumps({'machine': about, 'results': results}, indent=1).encode())
    except tinyvit_zoo.ZooError as e:
        print(f'benchmark.py: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
