"""`tinyvit-zoo count`: parameters, multiply-adds, activations and memory."""
import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..measure.comparison import cost, find_names
from ..runtime.text import as_csv, table
from ._options import add_formats, add_img_size, positive

NAME = 'count'
SUMMARY = 'count parameters, multiply-adds, activations and memory of models'
EXAMPLES = '''
tinyvit-zoo count cct_7_3x1 --parts
tinyvit-zoo count 'sl_*' resnet18 --img-size 64 --json
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', metavar='NAME', nargs='*',
                        help='models of the zoo or timm; wildcards match the zoo (default: all of the zoo)')
    parser.add_argument('--num-classes', type=int, metavar='N', help='0: no head (default: of the model)')
    add_img_size(parser)
    parser.add_argument('--batch-size', type=positive, default=1, metavar='N', help='default: 1')
    parser.add_argument('--fvcore', action='store_true', help='add the count of fvcore, which many papers use')
    parser.add_argument('--parts', action='store_true', help='add a line for each part of a model')
    add_formats(parser, 'print JSON')


def run(args: argparse.Namespace) -> str:
    rows = [cost(name, args.num_classes, args.img_size, args.batch_size, args.fvcore)
            for name in find_names(args.names)]
    if args.csv:
        return as_csv(rows)
    return json.dumps(rows, indent=2) if args.json else _text(rows, args)


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
        if args.fvcore:
            macs = row['fvcore']
            norms = [name for name in macs if 'norm' in name]
            unseen = [name for name in macs if name.startswith(('scaled_dot', 'tinyvit_zoo'))]
            lines[-1] += [_millions(sum(macs[name] for name in names)) for names in (macs, norms, unseen)]
        if args.parts:
            lines += [[f'  {name}', '', '', f'{part["trainable"]:,}', f'{part["params"] - part["trainable"]:,}',
                       _millions(part['macs'])] + [''] * (len(lines[0]) - 6) for name, part in row['parts'].items()]
    images = f'a batch of {args.batch_size} images' if args.batch_size > 1 else 'one image'
    text = [table(lines), '', f'For {images}, in fp32. Parameters are trainable; fixed values are not.',
            'Memory: weights and activations; for training also gradients, without optimizer state.']
    if args.fvcore:
        text.append('fvcore: unseen are operators we added handles for; it counts 5 for each value of a norm.')
    return '\n'.join([*text, *(f'[{number}] {note}' for note, number in notes.items())])


def _millions(value: int) -> str:
    return f'{value / 1e6:.2f}'


def _mebibytes(value: int | None) -> str:
    return '-' if value is None else f'{value / 2 ** 20:.1f}'
