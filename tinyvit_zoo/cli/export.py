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
from ..publish.export import check_replaceable, export, export_with_preprocessing
from ..publish.formats import FORMATS, Format, endings, files_of, format_of
from ..publish.int8 import check_int8
from ..runtime.text import show
from ..weights.resolve import resolve
from ._options import positive

NAME = 'export'
SUMMARY = 'export a model to ONNX, LiteRT, OpenVINO, ExecuTorch, Core ML or torch.export, and check the file'
EXAMPLES = '''
tinyvit-zoo export cct_7_3x1 cct.onnx
tinyvit-zoo export runs/a small.onnx --int8 --data c10=npz:FILE
tinyvit-zoo export cct_2_3x2.digits micro.tflite --int8 --data digits
tinyvit-zoo export --all 'cct*'
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model', metavar='MODEL', nargs='?', help='NAME[.TAG] of the zoo or timm, NAME.untrained, NAME[.TAG]=FILE, or '
        'a run directory')
    parser.add_argument('output', metavar='OUT', nargs='?', type=Path, help=f'NAME and an ending: {endings()}')
    parser.add_argument('--any-size', action='store_true', help='leave the image size open, if the model allows it')
    parser.add_argument('--int8', action='store_true', help='quantize to 8 bits: with --data, weights and activations '
                        '(ONNX, LiteRT), calibrated on training images; else the linear weights (ONNX)')
    parser.add_argument('--data', metavar='[KEY=]SOURCE', default='', help='also measure the accuracy of the model and '
                        'the file on the test images')
    parser.add_argument('--img-size', type=positive, metavar='N', help='image side (default: of the weights)')
    parser.add_argument('--all', metavar='PATTERN', nargs='*', help='instead, try every matching model (default: all) '
                        'with random weights and all installed formats, and print a table; no file is kept')


def run(args: argparse.Namespace) -> str:
    if args.all is not None:
        if any((args.model, args.output, args.data, args.img_size, args.int8, args.any_size)):
            raise ZooError('--all tries every model and format: leave out the other arguments.')
        return _try_all(args.all)
    if not args.model or not args.output:
        raise ZooError(f'Give MODEL and OUT, which ends in {endings()}; or --all.')
    form = format_of(args.output)
    if not args.output.absolute().parent.is_dir():
        raise ZooError(f'There is no folder {args.output.parent}: create it or choose another.')
    if args.int8:
        check_int8(args.output, bool(args.data))
    check_replaceable(args.output)
    form.require()
    loaded = resolve(args.model).load(img_size=args.img_size)
    report = export_with_preprocessing(loaded, args.output, args.any_size, args.int8, args.data)
    return _text(report, args.output)


def _text(report: dict[str, Any], output: Path) -> str:
    size = 'any size' if report['any_size'] else ' x '.join(map(str, report['input_size']))
    batch = 'one image' if report['one_image'] else 'batches of images'
    lines = [f'{output}: {report["model"]}, {batch} {size}, {report["bytes"] / 1e6:.2f} MB',
             f'{output.with_suffix(".json")}: its preprocessing and classes; the output is logits, probabilities are '
             f'{report["probabilities"]}']
    kind = f'int8 ({report["int8"]}), before that ' if report['int8'] else ''
    lines.append(f'random images: {kind}within {report["largest_difference"]:.1e} of the model'
                 if report['largest_difference'] is not None else
                 f'not checked: {format_of(output).name} files only run on their own platform')
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
    FORMATS['.onnx'].require()
    formats = [form for form in FORMATS.values() if _installed(form)]
    titles = ['model', *(form.name for form in formats), 'ONNX, any size', 'ONNX, int8']
    show(f'| {" | ".join(titles)} |\n{"|---" * len(titles)}|')
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval()
        show(f'| `{name}` | {" | ".join(_try(model, model.pretrained_cfg["input_size"], formats))} |')
    return ''


def _installed(form: Format) -> bool:
    try:
        form.require()
    except ZooError:
        return False
    return True


def _try(model: nn.Module, input_size: Sequence[int], formats: Sequence[Format]) -> list[str]:
    """Return a cell for each way to export a model."""
    with tempfile.TemporaryDirectory() as folder:
        cells = [tried(model, input_size, Path(folder, f'a{form.suffix}')) for form in formats]
        cells.append(tried(model, input_size, Path(folder, 'b.onnx'), any_size=True))
        return [*cells, tried(model, input_size, Path(folder, 'c.onnx'), int8=True)]


def tried(model: nn.Module, input_size: Sequence[int], path: Path, **options: Any) -> str:
    """Return the size in MB and, but for 8 bits, the largest difference of an export; '-' where it fails."""
    try:
        worst = export(model, input_size, path, **options)['largest_difference']
    except ZooError:
        return '-'
    size = f'{sum(each.stat().st_size for each in files_of(path)) / 1e6:.1f}'
    return size if worst is None or 'int8' in options else f'{size}, {worst:.0e}'
