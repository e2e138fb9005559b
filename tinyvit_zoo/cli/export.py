"""`tinyvit-zoo export`: a model as a file, or which models export."""
import argparse
import tempfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..errors import ZooError
from ..models import list_models
from ..publish.export import check_replaceable, export, export_with_preprocessing, require_onnx
from ..runtime.text import show
from ..weights.resolve import resolve
from ._options import positive

NAME = 'export'
SUMMARY = 'export a model to ONNX or torch.export, and check the file'
EXAMPLES = '''
tinyvit-zoo export cct_7_3x1 cct.onnx
tinyvit-zoo export runs/a small.onnx --int8 --data c10=npz:FILE
tinyvit-zoo export --all 'cct*'
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model', metavar='MODEL', nargs='?', help='NAME[.TAG] of the zoo or timm, NAME.untrained, NAME[.TAG]=FILE, or '
        'the directory of a training run')
    parser.add_argument('output', metavar='OUT', nargs='?', type=Path, help='NAME.onnx or, for torch.export, NAME.pt2')
    parser.add_argument('--any-size', action='store_true', help='take images of any size, if the model does')
    parser.add_argument('--int8', action='store_true', help='quantize the weights of linear layers to 8 bits (ONNX)')
    parser.add_argument('--data', metavar='[KEY=]SOURCE', default='', help='check on test images too, and measure the '
                        'accuracy of the model and of the file on them')
    parser.add_argument('--img-size', type=positive, metavar='N', help='default: that of the weights')
    parser.add_argument('--all', metavar='PATTERN', nargs='*', help='instead, try every model that matches (default: '
                        'all of the zoo), with random weights, and print which export; keeps no file')


def run(args: argparse.Namespace) -> str:
    if args.all is not None:
        if any((args.model, args.output, args.data, args.img_size, args.int8, args.any_size)):
            raise ZooError('--all tries every model in every way: leave the other arguments out.')
        return _try_all(args.all)
    if not args.model or not args.output:
        raise ZooError('Give MODEL and OUT (NAME.onnx or NAME.pt2), or --all.')
    if args.output.suffix not in ('.onnx', '.pt2'):
        raise ZooError(f'OUT is {args.output}, expected a name that ends in .onnx or .pt2.')
    if not args.output.absolute().parent.is_dir():
        raise ZooError(f'There is no folder {args.output.parent}: make it, or choose another.')
    if args.int8 and args.output.suffix != '.onnx':
        raise ZooError('--int8 is for ONNX: give an OUT that ends in .onnx.')
    check_replaceable(args.output)
    if args.output.suffix == '.onnx':
        require_onnx()
    loaded = resolve(args.model).load(img_size=args.img_size)
    report = export_with_preprocessing(loaded, args.output, args.any_size, args.int8, args.data)
    return _text(report, args.output)


def _text(report: dict[str, Any], output: Path) -> str:
    size = 'any size' if report['any_size'] else ' x '.join(map(str, report['input_size']))
    kind = 'int8, before that ' if report['int8'] else ''
    lines = [f'{output}: {report["model"]}, batches of images {size}, {output.stat().st_size / 1e6:.2f} MB',
             f'{output.with_suffix(".json")}: its preprocessing and classes; the output is logits, probabilities are '
             f'{report["probabilities"]}',
             f'random images: {kind}within {report["largest_difference"]:.1e} of the model']
    if measured := report.get('measured'):
        figure = 'ACC' if report['probabilities'].startswith('sigmoid') else 'top-1'
        lines.append(
            f'{measured["images"]:,} test images of {measured["data"]}: {figure} {measured["top1"]:.2f} % '
            f'(the model {measured["top1_model"]:.2f} %), the same class in {measured["same_class"]:.2f} %, '
            f'within {measured["largest_difference"]:.1e}')
    return '\n'.join(lines)


def _try_all(patterns: Sequence[str]) -> str:
    """Print a Markdown table, a line a model as soon as it is tried."""
    names = [name for name in list_models() if not patterns or any(fnmatchcase(name, p) for p in patterns)]
    if not names:
        raise ZooError(f'No model matches {" ".join(patterns)}: `tinyvit-zoo list` shows all.')
    require_onnx()
    show('| model | ONNX | ONNX, any size | torch.export | int8, bytes of fp32 |\n|---|---|---|---|---|')
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval()
        show(f'| `{name}` | {" | ".join(_try(model, model.pretrained_cfg["input_size"]))} |')
    return ''


def _try(model: nn.Module, input_size: Sequence[int]) -> list[str]:
    """Return largest differences, '-' where an export fails, and the size of the file in 8 bits."""
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, 'a.onnx'), Path(folder, 'b.onnx')
        for path, options in ((whole, {}), (Path(folder, 'c.onnx'), {'any_size': True}), (Path(folder, 'd.pt2'), {}),
                              (small, {'int8': True})):
            try:
                cells.append(f'{export(model, input_size, path, **options)["largest_difference"]:.0e}')
            except ZooError:
                cells.append('-')
        if cells[-1] != '-':
            cells[-1] = f'{small.stat().st_size / whole.stat().st_size:.0%}'
    return cells
