#!/usr/bin/env python3
"""Speed, side by side in one run.

    tools/benchmark.py models cct_7_3x1 cct_2_3x2 --mode inference train --precision fp32 bf16 --compile
    tools/benchmark.py augment --interpolation random
    tools/benchmark.py augment --model cct_7_3x1 --device cuda --precision bf16 --compile
    tools/benchmark.py training cct_2_3x2.c10_200e --precision bf16
    tools/benchmark.py pretraining mae_vit_c10 --methods mae_small moco_v3

`models` times each model beside its plain implementation (tools/plain.py), which is first checked to give the same
logits. The contenders take turns, so that a noisy machine is noisy for all; the ratio is the median over the rounds,
with its range. Training is a step of the recipe without the optimizer: forward with the dropouts on, loss, backward.
`--without spt` also times the model without that option: what it costs is a share of the full model's time.

`augment` times the batched augmentation beside timm's Pillow pipeline of the same policy (random resized crop of 0.8 to
1, flip, RandAugment, normalisation) in a loader with a worker a core; with --model, a training step with it beside one
that only normalises.

`training` times `tinyvit-zoo train` by recipe, loading and augmenting included, beside a plain loop over the plain
model on batches that lie ready; each in a process of its own (tools/bench_training.py).

`pretraining` times a step of each method that the model can be pre-trained by, beside a supervised step of it with crop
and flip, on the same images (tools/bench_pretraining.py), and says the memory that each came to need.
"""
from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from plain import plain
from timm.data import auto_augment, create_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset

import tinyvit_zoo
from tinyvit_zoo.data.augment import Augment, normalize
from tinyvit_zoo.data.info import DATASETS
from tinyvit_zoo.data.policies import make_policy
from tinyvit_zoo.models import check_name
from tinyvit_zoo.recipes import OWN, find_recipe
from tinyvit_zoo.training.stream import posterize

Step = Callable[[], object]


def machine(device: torch.device) -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
        cpu = names[0] if names else cpu
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'timm': timm.__version__,
            'tinyvit_zoo': tinyvit_zoo.__version__, 'date': time.strftime('%Y-%m-%d')}


def seconds(step: Step, device: torch.device) -> float:
    """Wall time of one call, the device's queue empty before and after."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def rounds(steps: dict[str, Step], device: torch.device, budget: float) -> dict[str, list[float]]:
    """Times of each contender, in turn, for about `budget` seconds and at least 3 rounds after a warm-up."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    return times


def make_step(model: nn.Module, images: torch.Tensor, train: bool, bf16: bool,
              prepare: Callable[[torch.Tensor], torch.Tensor] = lambda images: images) -> Step:
    """One pass over a batch, `prepare`d anew each time."""
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


def contenders(name: str, args: argparse.Namespace, device: torch.device) -> tuple[dict[str, nn.Module], torch.Tensor]:
    """The plain model first (the baseline), then ours; all with the same weights, which is checked."""
    torch.manual_seed(0)
    ours = timm.create_model(name).to(device)
    x = torch.randn(args.batch_size, *ours.pretrained_cfg['input_size'], device=device)
    models: dict[str, nn.Module] = {'plain': plain(ours).to(device), 'ours': ours}
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), models['plain'].eval()(x), rtol=1e-3, atol=1e-4)
    for option in args.without:
        models[f'without {option}'] = timm.create_model(name, **{option: False}).to(device)
    if args.compile:
        models['ours compiled'] = torch.compile(ours)
    return models, x


def bench_models(args: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(args.device)
    results = []
    for name in args.names:
        models, x = contenders(name, args, device)
        for mode in args.mode:
            for precision in args.precision:
                steps: dict[str, Step] = {}
                for key, model in models.items():
                    model.train(mode == 'train')
                    steps[key] = make_step(model, x, mode == 'train', precision == 'bf16')
                times = rounds(steps, device, args.seconds)
                for row in summarise(times, len(x)):
                    results.append({'model': name, 'mode': mode, 'precision': precision, 'batch': len(x), **row})
                    print_row(results[-1])
    return results


class PillowImages(Dataset):
    """Images in memory through a transform for Pillow's, as timm's data sets."""

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


def bench_augment(args: argparse.Namespace) -> list[dict[str, Any]]:
    device, info = torch.device(args.device), DATASETS['c10']
    augment = Augment((args.img_size,) * 2, info.mean, info.std, flip=0.5, crop_scale=(0.8, 1.),
                      interpolation=args.interpolation, auto_augment=args.policy)
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
    results = []
    for row in summarise(rounds(steps, device, args.seconds), count):
        results.append({**about, 'batch': args.batch_size, **row})
        print_row(results[-1])
    return results


def bench_trainings(args: argparse.Namespace) -> list[dict[str, Any]]:
    from bench_training import STEPS, bench_training

    results = []
    for (recipe, batch, precision), times in bench_training(
            args.names, args.precision, args.device, args.seconds).items():
        for row in summarise(times, STEPS * batch):
            results.append({'recipe': recipe, 'precision': precision, 'batch': batch, **row})
            print_row(results[-1])
    return results


def bench_pretrainings(args: argparse.Namespace) -> list[dict[str, Any]]:
    from bench_pretraining import STEPS, bench_pretraining, possible

    results = []
    for model in args.names:
        times, memory = bench_pretraining(
            model, args.methods or possible(model), args.precision, args.batch_size, args.device, args.seconds)
        for row in summarise(times, STEPS * args.batch_size):
            results.append({'model': model, 'precision': args.precision, 'batch': args.batch_size, **row,
                            'time': 1 / row['ratio'], 'mebibytes': memory[row['contender']]})
            print_row(results[-1])
    return results


def summarise(times: dict[str, list[float]], batch: int) -> list[dict[str, Any]]:
    baseline = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = sorted(b / v for b, v in zip(baseline, values, strict=False))
        rows.append({
            'contender': name, 'images_per_second': batch / statistics.median(values),
            'ratio': statistics.median(ratios), 'ratio_range': [ratios[0], ratios[-1]], 'rounds': len(values)})
        if name.startswith('without'):
            rows[-1]['saved'] = statistics.median(1 - v / o for v, o in zip(values, times['ours'], strict=True))
    return rows


def print_row(row: dict[str, Any]) -> None:
    (low, high), what = row['ratio_range'], list(row)[:list(row).index('contender')]
    print(f'{"  ".join(str(row[key]) for key in what)}  {row["contender"]:13} '
          f'{row["images_per_second"]:9.1f} images/s {row["ratio"]:6.2f}x  [{low:.2f}, {high:.2f}]  '
          f'{row["rounds"]} rounds' + (f', {row["saved"]:.1%} of the time of ours saved' if 'saved' in row else '')
          + (f', {row["time"]:.0%} of the time, {row["mebibytes"]:.0f} MiB' if 'time' in row else ''), flush=True)


def check(args: argparse.Namespace) -> None:
    if args.what == 'augment':
        if args.policy.split('-')[0] != 'rand':
            raise tinyvit_zoo.ZooError(f'timm has no policy {args.policy!r} to measure against: give a rand-... one.')
        make_policy(args.policy, (args.img_size,) * 2, args.interpolation, (0.,))
        if args.model:
            check_name(args.model)
    for name in args.names if args.what == 'training' else ():
        plain(timm.create_model(find_recipe(name).model))
    for name in args.names if args.what == 'pretraining' else ():
        check_name(name)
    for name in args.names if args.what == 'models' else ():
        check_name(name)
        model = timm.create_model(name)
        plain(model)
        for option in args.without:
            if option not in inspect.signature(type(model)).parameters:
                raise tinyvit_zoo.ZooError(f'{name} has no option {option!r} to be without.')
    if args.device.startswith('cuda') and not torch.cuda.is_available():
        raise tinyvit_zoo.ZooError('There is no CUDA device here: use --device cpu.')


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='what', required=True)
    models = commands.add_parser('models', help='our models beside plain ones')
    models.add_argument('names', nargs='+', metavar='NAME', help='models of the zoo')
    models.add_argument('--mode', nargs='+', choices=['inference', 'train'], default=['inference', 'train'])
    models.add_argument('--precision', nargs='+', choices=['fp32', 'bf16'], default=['fp32'])
    models.add_argument('--compile', action='store_true', help='also time ours under torch.compile')
    models.add_argument('--without', nargs='+', default=[], metavar='OPTION', help='also time it with OPTION=False')
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
    pretraining = commands.add_parser('pretraining', help='a step of each method beside a supervised one')
    pretraining.add_argument('names', nargs='+', metavar='MODEL', help='models of the zoo')
    pretraining.add_argument('--methods', nargs='+', choices=list(OWN), metavar='METHOD',
                             help='default: all that take the model')
    pretraining.add_argument('--precision', choices=['fp32', 'bf16'], default='bf16')
    for command in (models, augment, training, pretraining):
        if command is not training:
            command.add_argument('--batch-size', type=int, default=512 if command is augment else 128)
        command.add_argument('--device', default='cpu')
        command.add_argument('--seconds', type=float, default=20., help='time for each comparison (at least 3 rounds)')
        command.add_argument('--json', type=Path, metavar='FILE', help='write the results and the machine to FILE')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        check(args)
    except tinyvit_zoo.ZooError as e:
        print(f'benchmark.py: {e}', file=sys.stderr)
        return 2
    about = machine(torch.device(args.device))
    print(', '.join(f'{key} {value}' for key, value in about.items()))
    bench = {'models': bench_models, 'augment': bench_augment, 'training': bench_trainings,
             'pretraining': bench_pretrainings}[args.what]
    results = bench(args)
    if args.json:
        args.json.write_text(json.dumps({'machine': about, 'results': results}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
