"""Evaluate a model on a split: its loss and accuracy, all its figures, and the catalogue's beside them."""
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.datasets import DATASETS
from ..data.sources import Source
from ..errors import ZooError
from ..runtime.files import write_whole
from ..runtime.text import table, track
from ..runtime.world import World, autocast
from ..weights import Weight, catalogue
from ..weights.readout import Readout, write_readout
from .bench import Bench, open_bench_source
from .calibration import check_logits, fit_temperature
from .figures import Figures, figures_of
from .multilabel import MultiLabelFigures

_FORMATS = {'top1': '.2f', 'top5': '.2f', 'loss': '.4f'}      # of the cards
_OUTCOMES = ('agrees', 'DIFFERS', 'no figure', 'not to be had')


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World, dtype: torch.dtype | None = None,
             outputs: list[tuple[Tensor, Tensor]] | None = None) -> dict[str, float]:
    """Return 'top1', 'top5' (percent; top5 from 6 classes on), 'loss' and 'images' over all processes.

    Where images have several labels, [B, C] of 0 and 1, 'accuracy' in place of the first two.
    """
    # `outputs` gets the logits and labels of each batch of this process, on the CPU
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # loss, top-1, top-5, images
    classes, several = 0, False
    for images, labels in batches:
        with autocast(world.device, dtype):
            logits = model(images)
        check_logits(logits, getattr(model, 'num_classes', None))
        logits = logits.float()
        classes = logits.shape[1]
        several = labels.ndim == 2
        if several:
            loss = F.binary_cross_entropy_with_logits(logits, labels.float()) * len(labels)
            hits = (logits > 0).eq(labels).float().mean(1, keepdim=True)
        else:
            loss = F.cross_entropy(logits, labels, reduction='sum')
            hits = logits.topk(min(5, classes)).indices.eq(labels[:, None])
        if outputs is not None:
            outputs.append((logits.cpu(), labels.cpu()))
        sums += torch.stack([
            loss.double(), hits[:, 0].sum().double(), hits.sum().double(),
            torch.tensor(float(len(labels)), dtype=torch.float64, device=world.device)])
    model.train(training)
    loss, top1, top5, count = world.sum(sums).tolist()
    figures = {'accuracy' if several else 'top1': 100 * top1 / count, 'loss': loss / count, 'images': int(count)}
    return {**figures, 'top5': 100 * top5 / count} if classes > 5 and not several else figures


class ViewAverage(nn.Module):
    """Average logits over views. 'flip': mirrored too; 'shift': moved by a pixel to either corner too; both: six."""

    def __init__(self, model: Any, views: str) -> None:
        super().__init__()
        self.model, self.flip, self.shift = model, 'flip' in views, 'shift' in views
        self.pretrained_cfg = getattr(model, 'pretrained_cfg', {})

    def forward(self, x: Tensor) -> Tensor:
        views = [x]
        if self.shift:
            padded = F.pad(x, (1, 1, 1, 1), 'reflect')
            views += [padded[..., :-2, :-2], padded[..., 2:, 2:]]
        if self.flip:
            views += [view.flip(3) for view in views]
        return torch.stack([self.model(view).float() for view in views]).mean(0)


def outputs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World,
            dtype: torch.dtype | None = None, quiet: bool = False) -> tuple[Tensor, Tensor]:
    """Return the logits [N, C] and labels [N] of all images, in their order, on every process; with a bar."""
    own: list[tuple[Tensor, Tensor]] = []
    evaluate(model, track(batches, 'evaluating', 'batch', quiet or not world.first, lines=False), world, dtype, own)
    parts = world.gather(own)       # of each process every size-th image of each batch
    whole = []
    for number in range(max(map(len, parts))):
        shares = [part[number] for part in parts if len(part) > number]
        merged = tuple(torch.empty(sum(len(share[k]) for share in shares), *shares[0][k].shape[1:],
                                   dtype=shares[0][k].dtype) for k in (0, 1))
        for place, share in enumerate(shares):
            for into, values in zip(merged, share, strict=True):
                into[place::len(shares)] = values
        whole.append(merged)
    return torch.cat([logits for logits, _ in whole]), torch.cat([labels for _, labels in whole])


def accuracy(bench: Bench, bootstrap: int = 0) -> Figures | MultiLabelFigures:
    """Return all figures of the split; with intervals where `bootstrap` resamples are asked for."""
    logits, labels = outputs(bench.loaded.model, bench.batches(), bench.world, bench.dtype)
    return figures_of(logits, labels, bench.class_names, bootstrap, readout=bench.loaded.readout)


def calibrate(bench: Bench, file: Path | None) -> Readout:
    """Fit the temperature of weights to the bench's validation images, and write it into their file and card."""
    title, source = bench.loaded.title, bench.source
    if not file or file.suffix != '.safetensors':
        raise ZooError(f'{title} has no file to store a temperature in: give a run directory, or NAME=FILE with a '
                       f'.safetensors file.')
    if not bench.loaded.model.num_classes:
        raise ZooError(f'{title} is an encoder, without probabilities to calibrate: train a classifier from it.')
    if source.val is None:
        raise ZooError(f'{source.name} has no validation images to fit a temperature to: give data with a validation '
                       f'split, or train with a val_fraction of 0.1.')
    bench.check_classes()
    readout = replace(bench.loaded.readout, temperature=fit_temperature(
        *outputs(bench.loaded.model, bench.batches('val'), bench.world, bench.dtype)))
    if bench.world.first:
        write_readout(file, readout)
        if (card := file.with_name('card.md')).is_file():
            text = re.sub(rb'(?<=predict` shows )\w+\(logits[^)]*\)', readout.formula.encode(), card.read_bytes())
            write_whole(card, text)
    bench.world.barrier()
    return readout


def check_catalogue(specs: Sequence[str], make_bench: Callable[[str, Source], Bench],
                    **options: Any) -> list[dict[str, Any]]:
    """Evaluate every classifier of the catalogue whose dataset is among `specs`; return a row for each."""
    sources: dict[str, Source] = {}
    for spec in specs:
        source = open_bench_source(spec, 'test', **options)
        if not source.info:
            raise ZooError(f'{spec} does not name its data set: write KEY={spec}, with KEY one of '
                           f'{", ".join(DATASETS)}.')
        if source.info.key in sources:
            raise ZooError(f'--data gives {source.info.key} twice: give it once.')
        sources[source.info.key] = source
    classifiers = [w for w in catalogue().values() if not w.encoder]
    weights = [w for w in classifiers if w.dataset in sources]
    if not weights:
        raise ZooError(f'The catalogue has no classifier for {", ".join(sources)}: it has some for '
                       f'{", ".join(sorted({w.dataset for w in classifiers}))}.')
    return [_check_weight(w, sources[w.dataset], make_bench) for w in weights]


def _check_weight(weight: Weight, source: Source, make_bench: Callable[[str, Source], Bench]) -> dict[str, Any]:
    """Compare figures as displayed, to the last digit."""
    expected: dict[str, Any] = {key: value for key, value in (weight.measured or {}).items() if key in _FORMATS}
    row = {'weights': weight.name, 'data': source.name, 'catalogue': expected, 'now': {}, 'differs': [], 'reason': ''}
    try:
        figures = accuracy(make_bench(weight.name, source)).to_dict()
    except ZooError as e:       # no network, for example: go on with the others
        if weight.file:         # ships with the package
            raise
        return {**row, 'outcome': 'not to be had', 'reason': str(e)}
    wrong = [key for key, value in expected.items() if _cell(key, value) != _cell(key, figures.get(key))]
    return {**row, 'now': {key: figures[key] for key in (*_FORMATS, 'images', 'interval') if key in figures},
            'differs': wrong, 'outcome': 'DIFFERS' if wrong else 'agrees' if expected else 'no figure'}


def _cell(key: str, value: float | None) -> str:
    return '-' if value is None else f'{value:{_FORMATS[key]}}'


def check_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table, the number of each outcome, and up to three reasons for missing weights."""
    lines = [('weights', 'data', 'catalogue', 'now', '')]
    for row in rows:
        before, now = (_cell('top1', row[side].get('top1')) for side in ('catalogue', 'now'))
        detail = ', '.join(f'{key} {_cell(key, row["catalogue"][key])} is now {_cell(key, row["now"].get(key))}'
                           for key in row['differs'] if key != 'top1')
        lines.append((row['weights'], row['data'], before, now, row['outcome'] + (detail and f': {detail}')))
    counts = [(name, sum(row['outcome'] == name for row in rows)) for name in _OUTCOMES]
    reasons = [f'{row["weights"]}: {row["reason"]}' for row in rows if row['reason']]
    if len(reasons) > 3:
        reasons[2:] = [f'And {len(reasons) - 2} more: see --json.']
    return '\n'.join([table(lines, left=(0, 1, 4)), '', ', '.join(f'{name}: {n}' for name, n in counts if n), *reasons])
