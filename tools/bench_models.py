"""`benchmark.py models` and `scaling`: models beside plain ones, or beside each other."""
from __future__ import annotations

import argparse
import inspect
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import timm
import torch
from plain import plain
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli._options import add_img_size, positive
from tinyvit_zoo.measure.comparison import Step, find_names, make_model, make_step, rounds, summarise
from tinyvit_zoo.measure.counting import Ledger, count, image_size
from tinyvit_zoo.models import check_name
from tinyvit_zoo.runtime.files import check_picture, new_figure, write_picture

_CLASSES = 10      # of all contenders

Models = dict[str, nn.Module]
Say = Callable[[dict[str, Any]], None]


def add_models(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    parser.add_argument('--mode', nargs='+', choices=['inference', 'latency', 'train'], default=['inference', 'train'],
                        help='latency: inference of one image, whatever the batch')
    parser.add_argument('--precision', nargs='+', choices=['fp32', 'bf16'], default=['fp32'])
    parser.add_argument('--compile', action='store_true', help='also under torch.compile')
    parser.add_argument('--without', nargs='+', default=[], metavar='OPTION',
                        help='also time a model with OPTION=False (not with --baseline)')
    parser.add_argument('--products', action='store_true',
                        help='also time the matrix products and convolutions of the plain model alone, a lower bound '
                             '(not with --baseline)')
    add_img_size(parser)
    parser.add_argument('--batch-size', type=positive, default=128)


def add_scaling(parser: argparse.ArgumentParser) -> None:
    _add_names(parser)
    parser.add_argument('--mode', choices=['inference', 'train'], default='inference')
    parser.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    parser.add_argument('--batch-sizes', type=positive, nargs='+', default=[1, 4, 16, 64])
    parser.add_argument('--img-sizes', type=positive, nargs='+', metavar='S',
                        help='default: the size that the first model is made for')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='images a second over both sizes: .png, .pdf or .svg')


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', nargs='+', metavar='NAME', help="models of the zoo, and timm's beside a --baseline")
    parser.add_argument('--baseline', metavar='NAME', help='reference of the ratios, a model of the zoo or of timm '
                                                           '(default: the plain implementation, or the first NAME)')


def check_models(args: argparse.Namespace) -> None:
    """Raise ZooError for impossible options, before anything is timed."""
    if args.baseline:
        args.names = find_names([args.baseline, *args.names])
        for option in ('without', 'products'):
            if getattr(args, option):
                raise ZooError(f'--{option} is for a model beside its plain implementation: leave out --baseline.')
        _common_size(args)
        return
    for name in args.names:
        check_name(name)
        model = make_model(name, img_size=args.img_size)
        plain(model)
        for option in args.without:
            if option not in inspect.signature(type(model)).parameters:
                raise ZooError(f'{name} has no option {option!r} to be without.')


def _common_size(args: argparse.Namespace) -> tuple[int, int, int]:
    """Return the image size of all contenders, after a trial count of each."""
    sizes = {name: image_size(make_model(name, _CLASSES, args.img_size, 'meta'), args.img_size) for name in args.names}
    if len(set(sizes.values())) > 1:
        text = ', '.join(f'{name} {height}x{width}' for name, (_, height, width) in sizes.items())
        raise ZooError(f'The models take images of different sizes ({text}): give one for all by --img-size.')
    for name, size in sizes.items():
        count(make_model(name, _CLASSES, args.img_size, 'meta'), size)
    return sizes[args.names[0]]


def check_scaling(args: argparse.Namespace) -> None:
    args.names = find_names([args.baseline, *args.names] if args.baseline else args.names)
    args.img_sizes = args.img_sizes or [image_size(make_model(args.names[0], device='meta'))[1]]
    for name, size in itertools.product(args.names, args.img_sizes):
        count(make_model(name, _CLASSES, (size, size), 'meta'), size)
    if args.plot:
        check_picture('--plot', args.plot)


# -- one run: contenders in turn ---------------------------------------------------------------------------------------
def bench_models(args: argparse.Namespace, device: torch.device, say: Say) -> None:
    """Run each comparison in its own process: memory kept by an earlier one spares page faults and changes ratios."""
    groups = [args.names] if args.baseline else [[name] for name in args.names]
    jobs = [argparse.Namespace(**{**vars(args), 'names': names, 'mode': mode, 'precision': precision, 'device': device})
            for names in groups for mode in args.mode for precision in args.precision]
    for job in jobs:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as process:
            for row in process.submit(_bench_one, job).result():
                say(row)


def _bench_one(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time the contenders in one mode and precision."""
    if args.baseline:
        size = _common_size(args)
        models = {name: make_model(name, _CLASSES, args.img_size).to(args.device) for name in args.names}
        about, models = {'images': 'x'.join(map(str, size))}, _with_compiled(models, args.compile)
    else:
        models, size = beside_plain(args.names[0], args)
        about = {'model': args.names[0]}
    batch = 1 if args.mode == 'latency' else args.batch_size
    images = torch.randn(batch, *size, device=args.device)
    rows = bench(models, images, args.mode == 'train', args.precision == 'bf16', args.seconds, args.products)
    return [{**about, 'mode': args.mode, 'precision': args.precision, 'batch': batch, **row} for row in rows]


def _with_compiled(models: Models, wanted: bool) -> Models:
    compiled = {f'{name} compiled': torch.compile(model) for name, model in models.items()} if wanted else {}
    return {**models, **compiled}


def beside_plain(name: str, args: argparse.Namespace) -> tuple[Models, tuple[int, int, int]]:
    """Make the plain model (the baseline) and ours with the same weights; check that their logits agree."""
    torch.manual_seed(0)
    sized = {} if args.img_size is None else {'img_size': args.img_size}
    ours = timm.create_model(name, **sized).to(args.device)
    size = image_size(ours, args.img_size)
    x = torch.randn(args.batch_size, *size, device=args.device)
    models: Models = {'plain': plain(ours).to(args.device), 'ours': ours}
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), models['plain'].eval()(x), rtol=1e-3, atol=1e-4)
    for option in args.without:
        models[f'without {option}'] = timm.create_model(name, **{option: False}, **sized).to(args.device)
    if args.compile:
        models['ours compiled'] = torch.compile(ours)
    return models, size


class _Products(TorchDispatchMode):
    """Record the matrix products and convolutions of a step, to repeat them alone.

    They are repeated on random tensors of the same layout (maps: channels last, the faster one), one for each distinct
    shape, which therefore stay in a cache more often than those of a model.
    """
    names = ('mm', 'addmm', 'bmm', 'baddbmm', 'convolution', 'convolution_backward')

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any]]] = []
        self.tensors: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.names:
            self.calls.append((func, [self._stand_in(x, i) if isinstance(x, Tensor) else x
                                      for i, x in enumerate(args)]))
        else:
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))

    def _stand_in(self, x: Tensor, place: int) -> Tensor:
        key = place, x.shape, x.stride(), x.dtype
        if key not in self.tensors:
            other = torch.empty_like(x).normal_()
            self.tensors[key] = other.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else other
        return self.tensors[key]

    def step(self) -> None:
        with torch.no_grad():
            for func, args in self.calls:
                func(*args)


def products_alone(step: Step) -> Step:
    """Return a function that repeats the products of a step."""
    with _Products() as products:
        step()
    return products.step


def held_memory(step: Step, model: nn.Module, images: Tensor) -> int:
    """Return the peak memory of a step in bytes, with weights and images."""
    # on a GPU as its allocator reports; elsewhere tensors made by torch's operators, without internal buffers
    tensors = [*model.parameters(), *model.buffers(), images]
    step()
    if images.device.type == 'cuda':
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        step()
        rise = torch.cuda.max_memory_allocated(images.device) - before
        return rise + sum(t.numel() * t.element_size() for t in tensors)
    with Ledger() as ledger:
        ledger.hold(tensors)
        step()
    return ledger.peak


def bench(models: Models, images: Tensor, train: bool, bf16: bool, budget: float, products: bool = False,
          ) -> list[dict[str, Any]]:
    """Return a row for each model; compilation happens before the clock starts and is timed separately."""
    steps, memory, compiling = {}, {}, {}
    for name, model in models.items():
        steps[name] = make_step(model.train(train), images, train, bf16)
        if name.endswith(' compiled'):
            begun = time.perf_counter()
            steps[name]()
            compiling[name] = time.perf_counter() - begun
        if images.device.type == 'cuda' or name not in compiling:  # operators in compiled code are hidden
            memory[name] = held_memory(steps[name], model, images)
    if products:
        steps['products alone'] = products_alone(steps['plain'])
    times = rounds(steps, images.device, budget)
    rows = summarise(times, len(images))
    for row in rows:
        name = row['contender']
        row['memory_bytes'] = memory.get(name)
        row['compile_seconds'] = compiling.get(name)
        if name.startswith('without'):
            row['saved'] = statistics.median(1 - v / o for v, o in zip(times[name], times['ours'], strict=True))
    return rows


# -- over sizes --------------------------------------------------------------------------------------------------------
def bench_scaling(args: argparse.Namespace, device: torch.device, say: Say) -> None:
    rows: list[dict[str, Any]] = []
    train, bf16 = args.mode == 'train', args.precision == 'bf16'
    for size in args.img_sizes:
        models = {name: make_model(name, _CLASSES, (size, size)).to(device) for name in args.names}
        for batch in args.batch_sizes:
            images = torch.randn(batch, *image_size(models[args.names[0]], (size, size)), device=device)
            for row in bench(models, images, train, bf16, args.seconds):
                rows.append({'mode': args.mode, 'precision': args.precision, 'img_size': size, 'batch': batch, **row})
                say(rows[-1])
    if args.plot:
        draw_scaling(rows, args.plot)


def draw_scaling(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot images a second over batch size for the largest images, and over image size for the largest batches."""
    figure, (axes,) = new_figure(1, 2, (11, 4.2), sharey=True)
    for axis, x, fixed, label in ((axes[0], 'batch', 'img_size', 'batch size'),
                                  (axes[1], 'img_size', 'batch', 'image size, pixels')):
        largest = max(row[fixed] for row in rows)
        ticks = sorted({row[x] for row in rows})
        for name in dict.fromkeys(row['contender'] for row in rows):
            points = [row for row in rows if row['contender'] == name and row[fixed] == largest]
            axis.plot([row[x] for row in points], [row['images_per_second'] for row in points], marker='o', label=name)
        axis.set(xscale='log', yscale='log', xlabel=label, ylabel='images a second',
                 title=f'{"images of " if fixed == "img_size" else "batches of "}{largest}')
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f'{rows[0]["mode"]}, {rows[0]["precision"]}')
    write_picture(figure, path)
