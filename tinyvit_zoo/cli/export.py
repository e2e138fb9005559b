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
from ..measure.bench import check_size
from ..models import list_models
from ..publish.export import check_replaceable, export, export_with_preprocessing, json_of
from ..publish.formats import FORMATS, Format, endings, format_of
from ..publish.int8 import check_int8
from ..runtime.files import user_path
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
    parser.add_argument('output', metavar='OUT', nargs='?', type=user_path, help=f'NAME and an ending: {endings()}')
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
    resolved = resolve(args.model)
    check_size(resolved, args.img_size, 1, torch.device('cpu'))
    loaded = resolved.load(img_size=args.img_size)
    report = export_with_preprocessing(loaded, args.output, args.any_size, args.int8, args.data)
    return _text(report, args.output)


def _text(report: dict[str, Any], output: Path) -> str:
    size = 'any size' if report['any_size'] else ' x '.join(map(str, report['input_size']))
    batch = 'one image' if report['one_image'] else 'batches of images'
    lines = [f'{output}: {report["model"]}, {batch} {size}, {report["bytes"] / 1e6:.2f} MB',
             f'{json_of(output)}: its preprocessing' + (
                 f' and classes; the output is logits, probabilities are {formula}' if (
                     formula := report['probabilities']) else '; the output is features')]
    kind = f'int8 ({report["int8"]}), before that ' if report['int8'] else ''
    lines.append(f'random images: {kind}within {report["largest_difference"]:.1e} of the model'
                 if report['largest_difference'] is not None else
                 f'not checked: {format_of(output).name} files only run on their own platform')
    if measured := report.get('measured'):
        figure = 'ACC' if formula.startswith('sigmoid') else 'top-1'
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
    titles = ['model', 'MB', *(form.name for form in formats), 'ONNX, any size', 'int8, bytes of fp32']
    show(f'| {" | ".join(titles)} |\n{"|---" * len(titles)}|')
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval()
        megabytes = 4 * sum(p.numel() for p in model.parameters()) / 1e6
        cells = [f'`{name}`', f'{megabytes:.1f}', *_try(model, model.pretrained_cfg['input_size'], formats)]
        show(f'| {" | ".join(cells)} |')
    return ''


def _installed(form: Format) -> bool:
    try:
        form.require()
    except ZooError:
        return False
    return True


def _try(model: nn.Module, input_size: Sequence[int], formats: Sequence[Format]) -> list[str]:
    """Return largest differences, '-' where an export fails, and the size of the file in 8 bits."""
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, 'a.onnx'), Path(folder, 'b.onnx')
        ways: list[tuple[Path, dict[str, Any]]] = [
            *((Path(folder, f'a{form.suffix}'), {}) for form in formats), (Path(folder, 'c.onnx'), {'any_size': True}),
            (small, {'int8': True})]
        for path, options in ways:
            try:
                worst = export(model, input_size, path, **options)['largest_difference']
                cells.append('written' if worst is None else f'{worst:.0e}')
            except ZooError:
                cells.append('-')
        if cells[-1] != '-':
            cells[-1] = f'{small.stat().st_size / whole.stat().st_size:.0%}'
    return cells
