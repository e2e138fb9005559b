"""`benchmark.py runtimes`: a model by PyTorch, compiled, and by the runtimes of the formats that are installed.

With one thread (`OMP_NUM_THREADS=1`) the clock is the processor's time of this process, which is that of a quiet core
whatever else runs.
"""
from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli._options import add_img_size, positive
from tinyvit_zoo.measure.comparison import Step, find_names, make_model, summarise
from tinyvit_zoo.measure.counting import image_size
from tinyvit_zoo.publish.export import export, load_exported, quiet
from tinyvit_zoo.publish.formats import FORMATS, Function, files_of
from tinyvit_zoo.publish.int8 import quantize

Say = Callable[[dict[str, Any]], None]
_PYTORCH = 'PyTorch', 'torch.compile'
_NO_RUNTIME = '.pt2', '.mlpackage'      # a program of PyTorch's; what Apple's machines alone run


def add_runtimes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', nargs='+', metavar='NAME', help='models of the zoo')
    parser.add_argument('--batch-sizes', type=positive, nargs='+', default=[1, 128], metavar='N',
                        help='formats that take one image are timed at 1 alone')
    add_img_size(parser)


def check_runtimes(args: argparse.Namespace) -> None:
    args.names = find_names(args.names)
    FORMATS['.onnx'].require()


def bench_runtimes(args: argparse.Namespace, device: torch.device, say: Say) -> None:
    """Time the runtimes of each model in turn in this process; print a Markdown table at the end."""
    if device.type != 'cpu':
        raise ZooError(f'The runtimes are compared on the CPU: leave --device {device} out.')
    rows: list[dict[str, Any]] = []
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            for row in _bench_one(name, args, Path(folder)):
                rows.append(row)
                say(row)
    print(table(rows), f'\nload average at the end: {os.getloadavg()[0]:.1f}', sep='\n')


def _bench_one(name: str, args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    model = make_model(name, 10, args.img_size).eval()
    size = image_size(model, args.img_size)
    runs: dict[str, Function] = dict(zip(_PYTORCH, (model, torch.compile(model)), strict=True))
    megabytes = {}
    for form in FORMATS.values():
        with suppress(ZooError):    # it is not installed, or does not take this model
            form.require()
            path = folder / f'a{form.suffix}'
            if form.suffix not in _NO_RUNTIME:
                export(model, size, path)
                runs[form.name] = load_exported(path)
                megabytes[form.name] = sum(each.stat().st_size for each in files_of(path)) / 1e6
    with suppress(ZooError):
        path = Path(shutil.copyfile(folder / 'a.onnx', folder / 'small.onnx'))
        with quiet():
            quantize(path, torch.randn(64, *size))     # whatever the range: the time is the same
        runs['ONNX, int8'], megabytes['ONNX, int8'] = load_exported(path), path.stat().st_size / 1e6
    one_image = {form.name for form in FORMATS.values() if form.one_image}
    rows = []
    for batch in args.batch_sizes:
        images = torch.randn(batch, *size)
        steps = {title: partial(_run, run, images) for title, run in runs.items()
                 if batch == 1 or title not in one_image}
        about = {'model': name, 'pixels': size[-1], 'batch': batch}
        rows += [{**about, **row, 'megabytes': megabytes.get(row['contender'])}
                 for row in summarise(_rounds(steps, args.seconds), batch)]
    return rows


def _rounds(steps: dict[str, Step], budget: float) -> dict[str, list[float]]:
    """Time the contenders in turn for about `budget` seconds, 5 rounds or more, after two calls of warm-up."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {title: [] for title in steps}
    end = 0.
    for count in itertools.count(-2):
        if count == 0:
            end = clock() + budget
        elif count > 4 and clock() > end:
            return times
        for title, step in steps.items():
            begun = clock()
            step()
            if count >= 0:
                times[title].append(clock() - begun)
    raise AssertionError


@torch.inference_mode()
def _run(run: Function, images: Tensor) -> Tensor:
    return run(images)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return milliseconds of a batch in Markdown, a line a model and batch size, the fastest in bold."""
    titles = list(dict.fromkeys(row['contender'] for row in rows))
    lines = [['model', 'pixels', '.onnx, int8, MB', 'batch', *titles], ['---'] * (len(titles) + 4)]
    for name, batch in dict.fromkeys((row['model'], row['batch']) for row in rows):
        found = {row['contender']: row for row in rows if (row['model'], row['batch']) == (name, batch)}
        best = min(row['median_ms'] for row in found.values())
        bold = {title: '**' * (row['median_ms'] == best) for title, row in found.items()}
        times = [f'{bold[title]}{_digits(found[title]["median_ms"])}{bold[title]}' if title in found else ''
                 for title in titles]
        sizes = [f'{found[title]["megabytes"]:.1f}' if title in found else '-' for title in ('ONNX', 'ONNX, int8')]
        lines.append([f'`{name}`', str(found[titles[0]]['pixels']), ', '.join(sizes), str(batch), *times])
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n\n' + _summary(rows, titles)


def _digits(value: float) -> str:
    return f'{value:,.0f}' if value >= 100 else f'{value:.3g}'


def _summary(rows: Sequence[dict[str, Any]], titles: Sequence[str]) -> str:
    """Say how fast each runtime is beside PyTorch, over the models."""
    lines = []
    for batch in dict.fromkeys(row['batch'] for row in rows):
        ratios = {title: [row['ratio'] for row in rows if (row['batch'], row['contender']) == (batch, title)]
                  for title in titles}
        told = ', '.join(f'{title} {statistics.median(each):.2f}' for title, each in ratios.items() if each)
        lines.append(f'Speed beside PyTorch, median over the models, batch {batch}: {told}.')
    return '\n'.join(lines)
