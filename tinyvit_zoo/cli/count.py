"""`tinyvit-zoo count`: what models cost, beside what the papers say they do."""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import ZooError
from ..measure.counting import count, fvcore_macs, peak_memory
from ..measure.subjects import find_names, make_model
from ..runtime.text import as_csv, table
from ._options import add_formats, add_img_size, positive

NAME = 'count'
SUMMARY = 'count parameters, multiply-adds, activations and memory of models'
EXAMPLES = '''
tinyvit-zoo count cct_7_3x1 --parts
tinyvit-zoo count 'sl_*' resnet18 --img-size 64 --json
'''

# Why a paper's figure is not the count. A test checks each against every figure.
NO_PRODUCTS = ("The paper leaves out attention's two products, q k^T and what the values are weighted with (and then "
               "is right within rounding and 0.1 %).")
NORMS = 'The paper adds one for each value that comes out of a LayerNorm.'
SLIPS = "The paper adds one for each value that comes out of a LayerNorm, and its own counter has slips in this family."
PADDING = ("The figure is of the authors' code, which pads a map that is smaller than a window, and projects the "
           "padding too.")
NO_ATTENTION = 'The paper has "below 270": a counter that does not know the attention modules skips them whole.'

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
        'plain_vit_64': (189.8, NORMS), 'sl_vit_64': (199.2, NORMS),
        'plain_swin_64': (242.3, NORMS), 'sl_swin_64': (284.9, NORMS),
        'plain_t2t_64': (643.0, SLIPS), 'sl_t2t_64': (671.4, SLIPS),
        'plain_cait_64': (613.8, SLIPS), 'sl_cait_64': (623.3, SLIPS),
        'plain_pit_64': (279.2, SLIPS), 'sl_pit_64': (322.9, NORMS)},
    (16, 10): {'ssl_swin': (89.1, PADDING)},
    (36, 10): {'mae_vit_c10': (270, NO_ATTENTION)},
    (36, 100): {'mae_vit_c100': (270, NO_ATTENTION)},
}


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', metavar='NAME', nargs='*',
                        help='models of the zoo or of timm, with wildcards those of the zoo (default: all of it)')
    parser.add_argument('--num-classes', type=int, metavar='N', help='default: those a model is made for; 0: no head')
    add_img_size(parser)
    parser.add_argument('--batch-size', type=positive, default=1, metavar='N', help='default: 1')
    parser.add_argument('--fvcore', action='store_true', help="also what fvcore counts, as many papers' authors did")
    parser.add_argument('--parts', action='store_true', help='also the parts of each model')
    add_formats(parser, 'a list of objects, in plain numbers')


def run(args: argparse.Namespace) -> str:
    rows = [cost(name, args.num_classes, args.img_size, args.batch_size, args.fvcore)
            for name in find_names(args.names)]
    if args.csv:
        return as_csv(rows)
    return json.dumps(rows, indent=2) if args.json else _text(rows, args)


def cost(name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None, batch: int = 1,
         fvcore: bool = False) -> dict[str, Any]:
    """All that can be counted of a model, in plain numbers; memory in bytes, `macs` of one image times `batch`."""
    if num_classes is not None and num_classes < 0:
        raise ZooError(f'num_classes is {num_classes}, expected 0 (no head) or more.')
    model = make_model(name, num_classes, img_size, device='meta')
    found = count(model, img_size, batch)
    architecture, classes = name.partition('.')[0], int(model.num_classes)  # type: ignore[arg-type]
    height, width = found.input_size[1:]
    figures = PAPERS.get((height, classes), {}) if height == width else {}
    printed, why = figures.get(architecture, (None, ''))
    row = {
        'name': name, 'input_size': list(found.input_size), 'num_classes': classes, 'batch_size': batch,
        'params': found.params, 'trainable': found.trainable, 'frozen': found.frozen, 'buffers': found.buffers,
        'macs': found.macs, 'activations': found.activations,
        'peak_memory': peak_memory(model, img_size, batch), 'peak_training_memory': _training(model, img_size, batch),
        'parts': {part: vars(figures) for part, figures in found.parts.items()},
        'paper_macs': printed and batch * round(printed * 1e6), 'paper_note': why}
    if fvcore:
        by_operator = fvcore_macs(make_model(name, num_classes, img_size), img_size)
        row['fvcore'] = {key: batch * macs for key, macs in by_operator.items()}
    return row


def _training(model: nn.Module, img_size: tuple[int, int] | None, batch: int) -> int | None:
    """None where a model cannot train on such a batch: batch norm of one value has no variance."""
    try:
        return peak_memory(model, img_size, batch, train=True)
    except ZooError:
        return None


def _text(rows: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    notes = {note: i for i, note in enumerate(dict.fromkeys(row['paper_note'] for row in rows if row['paper_note']), 1)}
    head = ['model', 'input', 'classes', 'parameters', 'fixed', 'M MACs', 'paper', 'M activations', 'MiB',
            'MiB, training']
    lines = [head + (['fvcore', 'of which norms', 'unseen'] if args.fvcore else [])]
    for row in rows:
        printed = f'{row["paper_macs"] / 1e6:g} [{notes[row["paper_note"]]}]' if row['paper_note'] else '-'
        lines.append([
            row['name'], 'x'.join(map(str, row['input_size'])), str(row['num_classes']), f'{row["trainable"]:,}',
            f'{row["frozen"] + row["buffers"]:,}', _millions(row['macs']), printed, _millions(row['activations']),
            _mebibytes(row['peak_memory']), _mebibytes(row['peak_training_memory'])])
        lines[-1] += _fvcore_cells(row['fvcore']) if args.fvcore else []
        if args.parts:
            lines += [[f'  {name}', '', '', f'{part["trainable"]:,}', f'{part["params"] - part["trainable"]:,}',
                       _millions(part['macs'])] + [''] * (len(lines[0]) - 6) for name, part in row['parts'].items()]
    images = f'a batch of {args.batch_size} images' if args.batch_size > 1 else 'one image'
    text = [table(lines), '', f'Of {images}, in fp32. Parameters: those that are trained; fixed: other values that a '
            f'model holds.', 'Memory: weights and what a pass holds; training with gradients, without an optimizer.']
    if args.fvcore:
        text.append('fvcore: with handles for what it does not know (unseen); it counts five for a value of a norm.')
    return '\n'.join([*text, *(f'[{number}] {note}' for note, number in notes.items())])


def _fvcore_cells(by_operator: dict[str, int]) -> list[str]:
    norms = sum(macs for name, macs in by_operator.items() if 'norm' in name)
    unseen = sum(macs for name, macs in by_operator.items() if name.startswith(('scaled_dot', 'tinyvit_zoo')))
    return [_millions(sum(by_operator.values())), _millions(norms), _millions(unseen)]


def _millions(value: int) -> str:
    return f'{value / 1e6:.2f}'


def _mebibytes(value: int | None) -> str:
    return '-' if value is None else f'{value / 2 ** 20:.1f}'
