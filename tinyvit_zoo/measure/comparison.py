"""Count and compare models by name: size, work, accuracy and speed, beside the figures of the papers."""
import math
import statistics
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import Tensor, nn

from ..data.datasets import DATASETS
from ..errors import ZooError
from ..models import list_models
from ..recipes import RECIPES
from ..runtime.files import new_figure
from ..runtime.text import one_line
from ..runtime.world import cpu_name
from ..version import __version__
from ..weights import weight_of
from ..weights.resolve import check_model, create_model
from .counting import count, fvcore_macs, image_size, peak_memory

_BLUE = '#2b6cb0'
Step = Callable[[], object]

# Why a paper's figure differs from the count. A test checks each reason against every figure.
NO_PRODUCTS = ("The paper leaves out the two matrix products of attention; without them the counts agree to 0.1 %.")
NORMS = 'The paper adds one for each output value of a LayerNorm.'
SLIPS = "The paper adds one for each output value of a LayerNorm, and its counter has errors in this family."
PADDING = ("The figure is from the authors' code, which pads maps smaller than a window, and projects the padding too.")
NO_ATTENTION = 'The paper has "below 270": a counter that does not know the attention modules skips them.'

# In millions, as printed: (image size, classes), figures, reasons
PAPERS: dict[tuple[int, int], dict[str, tuple[float, str]]] = {
    (32, 10): {
        'cct_2_3x2': (33, NO_PRODUCTS), 'cct_4_3x2': (46, NO_PRODUCTS), 'cct_6_3x1': (813, NO_PRODUCTS),
        'cct_6_3x2': (241, NO_PRODUCTS), 'cct_7_3x1': (947, NO_PRODUCTS), 'cct_7_3x2': (275, NO_PRODUCTS),
        'cvt_6_4': (202, NO_PRODUCTS), 'cvt_7_4': (236, NO_PRODUCTS), 'vit_lite_6_4': (205, NO_PRODUCTS),
        'vit_lite_7_4': (239, NO_PRODUCTS), 'vit_lite': (239, NO_PRODUCTS)},
    (224, 1000): {'cct_14_7x2': (5110, NO_PRODUCTS)},
    (384, 1000): {'cct_14_7x2': (15020, NO_PRODUCTS)},
    (64, 200): {
        'plain_vit_64': (189.8, NORMS), 'sl_vit_64': (199.2, NORMS), 'plain_swin_64': (242.3, NORMS),
        'sl_swin_64': (284.9, NORMS), 'plain_t2t_64': (643.0, SLIPS), 'sl_t2t_64': (671.4, SLIPS),
        'plain_cait_64': (613.8, SLIPS), 'sl_cait_64': (623.3, SLIPS), 'plain_pit_64': (279.2, SLIPS),
        'sl_pit_64': (322.9, NORMS)},
    (16, 10): {'ssl_swin': (89.1, PADDING)},
    (36, 10): {'mae_vit_c10': (270, NO_ATTENTION)},
    (36, 100): {'mae_vit_c100': (270, NO_ATTENTION)},
}


# -- models by name ----------------------------------------------------------------------------------------------------
def find_names(patterns: Sequence[str]) -> list[str]:
    """Return each name once: as given, the zoo's models that match a wildcard, or all of the zoo's without patterns."""
    names: list[str] = []
    for pattern in patterns or ['*']:
        if not any(c in pattern for c in '*?['):
            check_model(pattern)
            names.append(pattern.removesuffix('.untrained'))
        elif matches := [name for name in list_models() if fnmatchcase(name, pattern)]:
            names += matches
        else:
            raise ZooError(f'No model of the zoo matches {pattern!r}: `tinyvit-zoo list` shows all.')
    return list(dict.fromkeys(names))


def make_model(
        name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None, device: str = 'cpu',
) -> nn.Module:
    """Build a model without weights, for `img_size` where its constructor takes one (a ResNet takes any images)."""
    kwargs: dict[str, Any] = {} if num_classes is None else {'num_classes': num_classes}
    try:
        return create_model(name, img_size, device=device, **kwargs)
    except ZooError:
        raise
    except (TypeError, RuntimeError, ValueError, AssertionError) as e:  # errors of timm
        raise ZooError(f'{name} cannot be built like this: {one_line(e)}') from e


# -- costs -------------------------------------------------------------------------------------------------------------
def cost(name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None, batch: int = 1,
         fvcore: bool = False) -> dict[str, Any]:
    """Count a model in plain numbers: memory in bytes, `macs` of the whole batch, and a paper's where there is one."""
    if num_classes is not None and num_classes < 0:
        raise ZooError(f'num_classes is {num_classes}, expected 0 (no head) or more.')
    model = make_model(name, num_classes, img_size, device='meta')
    counted = count(model, img_size, batch)
    architecture, classes = name.partition('.')[0], int(model.num_classes)  # type: ignore[arg-type]
    height, width = counted.input_size[1:]
    printed, why = PAPERS.get((height, classes) if height == width else (0, 0), {}).get(architecture, (None, ''))
    try:
        training_memory = peak_memory(model, img_size, batch, train=True)
    except ZooError:    # it cannot train on such a batch: batch norm of one value has no variance
        training_memory = None
    row = {
        'name': name, 'input_size': list(counted.input_size), 'num_classes': classes, 'batch_size': batch,
        'params': counted.params, 'trainable': counted.trainable, 'frozen': counted.frozen, 'buffers': counted.buffers,
        'macs': counted.macs, 'activations': counted.activations,
        'peak_memory': peak_memory(model, img_size, batch), 'peak_training_memory': training_memory,
        'parts': {part: vars(figures) for part, figures in counted.parts.items()},
        'paper_macs': printed and batch * round(printed * 1e6), 'paper_note': why}
    if not fvcore:
        return row
    by_operator = fvcore_macs(make_model(name, num_classes, img_size), img_size)
    return {**row, 'fvcore': {key: batch * macs for key, macs in by_operator.items()}}


# -- comparison --------------------------------------------------------------------------------------------------------
def default_dataset(names: Sequence[str]) -> str | None:
    """Return the dataset of the first default weights among the models."""
    weights = (weight_of(cfg) for cfg in map(get_pretrained_cfg, names) if cfg)
    return next((weight.dataset for weight in weights if weight), None)


def comparison_row(name: str, dataset: str | None, img_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Count a model, with the accuracies of its weights on `dataset`, at their size or at `img_size`."""
    # weights: those of the tag; without a tag the first on the dataset, measured ones before others
    architecture, _, tag = name.partition('.')
    weights = [weight_of(cfg) for cfg in get_arch_pretrained_cfgs(architecture).values() if tag in ('', cfg.tag)]
    fitting = [w for w in weights if w and w.dataset == dataset and not w.encoder]
    if tag and not fitting and any(w and not w.encoder for w in weights):
        raise ZooError(f'{name} has no accuracy on {dataset}, unlike the others: compare weights of one data set '
                       f'(--dataset), or leave out its tag.')
    weight = next((w for w in fitting if w.measured), fitting[0] if fitting else None)
    size = img_size or (weight.input_size[1:] if weight else None)
    model = make_model(architecture, DATASETS[dataset].num_classes if dataset else None, size, device='meta')
    counted = count(model, size)
    shown = weight if weight and tuple(weight.input_size) == tuple(counted.input_size) else None
    published = shown.published['top1'] if shown and shown.published else None
    if not weight and not tag:      # no weights to load, but a published figure
        published = next((r.published for r in RECIPES.values() if (r.model, r.dataset) == (name, dataset)
                          and counted.input_size[1:] == (r.img_size,) * 2), None)
    return {
        'name': name, 'weights': weight.name if weight else None, 'dataset': dataset,
        'input_size': list(counted.input_size), 'num_classes': int(model.num_classes),  # type: ignore[arg-type]
        'params': counted.params, 'macs': counted.macs, 'published': published,
        'measured': shown.measured['top1'] if shown and shown.measured else None}


def add_speeds(
        rows: Sequence[dict[str, Any]], device: torch.device, batch_size: int, precision: str, seconds: float,
) -> dict[str, Any]:
    """Add images a second and the ratio to the first row; return the machine and the conditions."""
    steps = {}
    for row in rows:
        size = tuple(row['input_size'][1:])
        model = make_model(row['name'].partition('.')[0], row['num_classes'], size).to(device).eval()
        images = torch.randn(batch_size, *image_size(model, size), device=device)
        steps[row['name']] = make_step(model, images, train=False, bf16=precision == 'bf16')
    for row, speed in zip(rows, summarise(rounds(steps, device, seconds), batch_size), strict=True):
        row.update({key: speed[key] for key in ('images_per_second', 'ratio', 'ratio_range', 'rounds')})
    return {**machine(device), 'precision': precision, 'batch_size': batch_size}


def conditions(about: dict[str, Any]) -> str:
    """Describe the conditions of the measured speeds in a line."""
    threads = '' if 'NVIDIA' in about['device'] else f', threads {about["threads"]}'
    return f'batches of {about["batch_size"]}, {about["precision"]}, {about["device"]}{threads}, torch {about["torch"]}'


def plot_comparison(rows: Sequence[dict[str, Any]], dataset: str | None, about: dict[str, Any] | None) -> Any:
    """Draw a panel for each figure and a line for each model: names stay readable whatever their number."""
    panels = 4 if about else 3
    figure, (axes,) = new_figure(1, panels, (3 * panels + 1, 1.3 + 0.32 * len(rows)),
                                f'Speed: {conditions(about)}' if about else '', sharey=True)
    _plot_bars(axes[0], 'M parameters', [row['params'] / 1e6 for row in rows], '{:.2f}')
    _plot_bars(axes[1], 'M MACs', [row['macs'] / 1e6 for row in rows], '{:.0f}')
    for key, fill in (('measured', _BLUE), ('published', 'none')):
        points = [(row[key], i) for i, row in enumerate(rows) if row[key] is not None]
        if points:
            axes[2].scatter(*zip(*points, strict=True), s=40, facecolors=fill, edgecolors=_BLUE, label=key)
    axes[2].set(xlabel=f'top-1, %{", " + DATASETS[dataset].title if dataset else ""}')
    axes[2].grid(axis='x', alpha=0.3)
    if axes[2].collections:
        axes[2].legend(fontsize=8, loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    else:
        axes[2].set_xticks([])
        axes[2].text(0.5, 0.5, 'no figures', transform=axes[2].transAxes, ha='center')
    if about:
        _plot_bars(axes[3], 'images/s', [row['images_per_second'] for row in rows], '{:.0f}')
    axes[0].set_yticks(range(len(rows)), [row['name'] for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _plot_bars(axis: Any, label: str, values: Sequence[float], style: str) -> None:
    axis.bar_label(axis.barh(range(len(values)), values, color=_BLUE), [style.format(value) for value in values],
                   padding=3, fontsize=8)
    axis.set(xlabel=label, xlim=(0, 1.25 * max(values)))


def plot_costs(points: Sequence[tuple[str, str, float, float]], dataset: str) -> Any:
    """Draw accuracy over the cost of training: (recipe, 'measured' or 'published', PFLOP, top-1)."""
    if not points:
        raise ZooError(f'No recipe of these models has an accuracy on {DATASETS[dataset].title}: give other models, or '
                       f'another --dataset.')
    figure, ((axes,),) = new_figure(1, 1, (8, 5))
    for i, name in enumerate(dict.fromkeys(recipe.partition('.')[0] for recipe, *_ in points)):
        for kind, size in (('measured', 60), ('published', 40)):
            chosen = [point for point in points if point[0].partition('.')[0] == name and point[1] == kind]
            axes.scatter([cost for *_, cost, _ in chosen], [top1 for *_, top1 in chosen], s=size, edgecolors=f'C{i}',
                         facecolors=f'C{i}' if kind == 'measured' else 'none')
    middle = (min(cost for *_, cost, _ in points) * max(cost for *_, cost, _ in points)) ** 0.5
    near = 0.03 * (max(top1 for *_, top1 in points) - min(top1 for *_, top1 in points))
    for recipe, _, cost, top1 in points:
        covered = any(cost < other < 10 * cost and abs(height - top1) < near for *_, other, height in points)
        side, offset = ('left', 6) if cost <= middle and not covered else ('right', -6)
        axes.annotate(recipe, (cost, top1), xytext=(offset, -3), ha=side, textcoords='offset points', fontsize=7)
    axes.set(xscale='log', xlabel='training cost, PFLOP', ylabel=f'top-1, %, {DATASETS[dataset].title}',
             title='filled: measured by us, hollow: published')
    axes.xaxis.set_major_formatter('{x:,g}')
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    return figure


# -- timing side by side: contenders take turns, so that a noisy machine affects all of them ---------------------------
def machine(device: torch.device) -> dict[str, Any]:
    """Return the device, versions and date of a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    return {'device': name, 'threads': torch.get_num_threads(), 'torch': torch.__version__, 'timm': timm.__version__,
            'tinyvit_zoo': __version__, 'date': time.strftime('%Y-%m-%d')}


def make_step(model: nn.Module, images: Tensor, train: bool, bf16: bool,
              prepare: Callable[[Tensor], Tensor] = lambda images: images) -> Step:
    """Return a function that passes a batch through `prepare` and the model; in training with loss and backward."""
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


def seconds(step: Step, device: torch.device) -> float:
    """Time one call; on a GPU by its events, after the queue is empty."""
    if device.type != 'cuda':
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def rounds(steps: dict[str, Step], device: torch.device, budget: float) -> dict[str, list[float]]:
    """Time the contenders in turn for about `budget` seconds, 3 rounds or more, after two calls of warm-up."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    return times


def summarise(times: dict[str, list[float]], batch: int) -> list[dict[str, Any]]:
    """Return a row for each contender; ratios of speed are to the first of them, round by round."""
    baseline = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratios = sorted(b / v for b, v in zip(baseline, values, strict=True))
        rows.append({'contender': name, 'images_per_second': batch / statistics.median(values),
                     'median_ms': 1e3 * statistics.median(values),
                     'p95_ms': 1e3 * sorted(values)[math.ceil(0.95 * len(values)) - 1],
                     'ratio': statistics.median(ratios), 'ratio_range': [ratios[0], ratios[-1]], 'rounds': len(values)})
    return rows
