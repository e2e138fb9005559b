#!/usr/bin/env python3
"""Speed, side by side in one run.

    tools/benchmark.py models cct_7_3x1 cct_2_3x2 --mode inference train --precision fp32 bf16 --compile

`models` times each model beside its plain implementation (tools/plain.py), which is first checked to give the same
logits. The contenders take turns, so that a noisy machine is noisy for all; the ratio is the median over the rounds,
with its range. Training is a step of the recipe without the optimizer: forward with the dropouts on, loss, backward.
`--without spt` also times the model without that option: what it costs is a share of the full model's time.
"""
from __future__ import annotations

import argparse
import inspect
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from plain import plain
from torch import nn

import tinyvit_zoo
from tinyvit_zoo.models import check_name

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


def make_step(model: nn.Module, x: torch.Tensor, train: bool, bf16: bool) -> Step:
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def inference() -> object:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            return model(x)

    def training() -> object:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
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
    low, high = row['ratio_range']
    print(f'{row["model"]:14} {row["mode"]:9} {row["precision"]:4} batch {row["batch"]:<4} {row["contender"]:13} '
          f'{row["images_per_second"]:9.1f} images/s {row["ratio"]:6.2f}x  [{low:.2f}, {high:.2f}]  '
          f'{row["rounds"]} rounds' + (f', {row["saved"]:.1%} of the time of ours saved' if 'saved' in row else ''),
          flush=True)


def check(args: argparse.Namespace) -> None:
    for name in args.names:
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
    models = parser.add_subparsers(dest='what', required=True).add_parser('models', help='our models beside plain ones')
    models.add_argument('names', nargs='+', metavar='NAME', help='models of the zoo')
    models.add_argument('--mode', nargs='+', choices=['inference', 'train'], default=['inference', 'train'])
    models.add_argument('--precision', nargs='+', choices=['fp32', 'bf16'], default=['fp32'])
    models.add_argument('--batch-size', type=int, default=128)
    models.add_argument('--device', default='cpu')
    models.add_argument('--compile', action='store_true', help='also time ours under torch.compile')
    models.add_argument('--without', nargs='+', default=[], metavar='OPTION', help='also time it with OPTION=False')
    models.add_argument('--seconds', type=float, default=20., help='time for each comparison (at least 3 rounds)')
    models.add_argument('--json', type=Path, metavar='FILE', help='write the results and the machine to FILE')
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
    results = bench_models(args)
    if args.json:
        args.json.write_text(json.dumps({'machine': about, 'results': results}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
