"""`tinyvit-zoo export`: options, the file and its preprocessing beside it, and the table of what exports.

The exported file takes normalised images of any batch size. It is written under its name only after it has given what
the model gives: on random images, and on real ones where `--data` names some.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ZooError
from ..version import __version__

if TYPE_CHECKING:
    from torch import nn

    from ..publish.export import Function

NAME = 'export'
SUMMARY = 'export a model to ONNX or torch.export, and check the file'
EXAMPLES = '''
tinyvit-zoo export cct_7_3x1 cct.onnx
tinyvit-zoo export runs/a small.onnx --int8 --data c10=npz:FILE
tinyvit-zoo export --all 'cct*'
'''
_SUFFIXES = ('.onnx', '.pt2')


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'model', metavar='MODEL', nargs='?', help='NAME[.TAG] of the zoo or timm, NAME.untrained, NAME[.TAG]=FILE, or '
        'the directory of a training run')
    parser.add_argument('output', metavar='OUT', nargs='?', type=Path, help='NAME.onnx or, for torch.export, NAME.pt2')
    parser.add_argument('--any-size', action='store_true', help='take images of any size, where the model does')
    parser.add_argument('--int8', action='store_true', help='ONNX with the weights of its linear layers in 8 bits')
    parser.add_argument('--data', metavar='[KEY=]SOURCE', help='check on test images too, and measure the accuracy of '
                        'the model and of the file on them')
    parser.add_argument('--img-size', type=int, metavar='N', help='another than that of the weights')
    parser.add_argument('--all', metavar='PATTERN', nargs='*', help="instead: try every model that matches (default: "
                        "all of the zoo's), with random weights, and say what exports; keeps no file")


def run(args: argparse.Namespace) -> str:
    if args.all is not None:
        if any((args.model, args.output, args.data, args.img_size, args.int8, args.any_size)):
            raise ZooError('--all tries every model in every way: leave the other arguments out.')
        return _try_all(args.all)
    _check(args)

    from ..publish.export import export, load_exported
    from ..weights.resolve import resolve

    loaded = resolve(args.model).load(img_size=args.img_size)
    evaluation = _evaluation(loaded, args.data) if args.data else None
    with tempfile.TemporaryDirectory(dir=args.output.absolute().parent, prefix='.export-') as folder:
        partial = Path(folder, args.output.name)
        found = export(loaded.model, loaded.cfg['input_size'], partial, any_size=args.any_size, int8=args.int8)
        report = {**_preprocessing(loaded), **found}
        if evaluation:
            report['measured'] = {'data': args.data, **evaluation(load_exported(partial), not args.int8)}
        report['sha256'] = hashlib.sha256(partial.read_bytes()).hexdigest()
        beside = Path(folder, 'preprocessing.json')
        beside.write_text(json.dumps(report, indent=1), encoding='utf-8')
        os.replace(beside, args.output.with_suffix('.json'))
        os.replace(partial, args.output)
    return _text(report, args.output)


def _check(args: argparse.Namespace) -> None:
    if not args.model or not args.output:
        raise ZooError('Give MODEL and OUT (NAME.onnx or NAME.pt2), or --all.')
    if args.output.suffix not in _SUFFIXES:
        raise ZooError(f'OUT is {args.output}, expected a name that ends in {" or ".join(_SUFFIXES)}.')
    if not args.output.absolute().parent.is_dir():
        raise ZooError(f'There is no folder {args.output.parent}: make it, or choose another.')
    _check_beside(args.output)
    if args.int8 and args.output.suffix != '.onnx':
        raise ZooError('--int8 is for ONNX: give an OUT that ends in .onnx.')
    if args.img_size is not None and args.img_size < 1:
        raise ZooError(f'--img-size is {args.img_size}, expected a number from 1 up.')
    if args.output.suffix == '.onnx':
        from ..publish.export import require_onnx

        require_onnx()


def _check_beside(output: Path) -> None:
    """ZooError where the preprocessing would take the place of something else."""
    beside = output.with_suffix('.json')
    if not beside.exists():
        return
    try:
        found = json.loads(beside.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or 'made_by' not in found or found.get('format') != output.suffix[1:]:
        raise ZooError(f'{beside} is there, and not of an export to {output.name}: its preprocessing would take that '
                       f'place, choose another name.')


def _evaluation(loaded: Any, data: str) -> Callable[[Function, bool], dict[str, Any]]:
    """A function of the exported one: the accuracy of both on test images, and how far they are apart."""
    import torch

    from ..measure.bench import Bench, open_bench_source
    from ..publish.export import TOLERANCE
    from ..runtime.world import World

    bench = Bench(loaded, open_bench_source(data, 'test'), 'test', World(0, 1, torch.device('cpu')), None, 64)
    bench.check_classes('give the data it was trained on, or leave --data out')

    @torch.inference_mode()
    def evaluate(exported: Function, strict: bool) -> dict[str, Any]:
        right, same, count, worst = [0, 0], 0, 0, torch.zeros(())
        for images, labels in bench.batches('test'):
            logits = [function(images) for function in (loaded.model, exported)]
            guesses = [found.argmax(1) for found in logits]
            right = [sum_ + int((guess == labels).sum()) for sum_, guess in zip(right, guesses, strict=True)]
            same += int((guesses[0] == guesses[1]).sum())
            worst = torch.maximum(worst, (logits[0] - logits[1]).abs().max())  # keeps NaN
            count += len(labels)
        if strict and not worst <= TOLERANCE:
            raise ZooError(f'The exported file gives other numbers than the model on {data} (by {worst:.1e}, at most '
                           f'{TOLERANCE:g} is rounding): it was not written; tell the maintainers.')
        return {'images': count, 'top1_model': 100 * right[0] / count, 'top1': 100 * right[1] / count,
                'same_class': 100 * same / count, 'largest_difference': worst.item()}

    return evaluate


# -- telling -----------------------------------------------------------------------------------------------------------
def _preprocessing(loaded: Any) -> dict[str, Any]:
    """What has to be done to a picture, and what the outputs are called: for whoever has the file alone."""
    cfg = loaded.cfg
    names = (loaded.model.pretrained_cfg or {}).get('label_names') or []
    return {
        'model': loaded.title, 'made_by': f'tinyvit_zoo {__version__}', 'input': 'images', 'output': 'logits',
        'layout': 'float32 [batch, channels, height, width], RGB',
        'steps': 'resize (the shorter side to height / crop_pct), crop the middle, divide by 255, subtract mean, '
                 'divide by std',
        'input_size': list(cfg['input_size']), 'interpolation': cfg['interpolation'], 'crop_pct': cfg['crop_pct'],
        'mean': list(cfg['mean']), 'std': list(cfg['std']), 'num_classes': loaded.model.num_classes,
        'label_names': list(names)}


def _text(report: dict[str, Any], output: Path) -> str:
    size = 'any size' if report['any_size'] else ' x '.join(map(str, report['input_size']))
    kind = 'int8, before that ' if report['int8'] else ''
    lines = [f'{output}: {report["model"]}, batches of images {size}, {output.stat().st_size / 1e6:.2f} MB',
             f'{output.with_suffix(".json")}: its preprocessing and classes',
             f'random images: {kind}within {report["largest_difference"]:.1e} of the model']
    if measured := report.get('measured'):
        lines.append(
            f'{measured["images"]:,} test images of {measured["data"]}: top-1 {measured["top1"]:.2f} % '
            f'(the model {measured["top1_model"]:.2f} %), the same class in {measured["same_class"]:.2f} %, '
            f'within {measured["largest_difference"]:.1e}')
    return '\n'.join(lines)


# -- what exports ------------------------------------------------------------------------------------------------------
def _try_all(patterns: Sequence[str]) -> str:
    """A Markdown table, a line a model: printed as it grows."""
    from fnmatch import fnmatchcase

    import timm
    import torch

    from ..models import list_models
    from ..publish.export import require_onnx

    names = [name for name in list_models() if not patterns or any(fnmatchcase(name, p) for p in patterns)]
    if not names:
        raise ZooError(f'No model matches {" ".join(patterns)}: `tinyvit-zoo list` shows all.')
    require_onnx()
    print('| model | ONNX | ONNX, any size | torch.export | int8, bytes of fp32 |\n|---|---|---|---|---|', flush=True)
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10).eval()
        print(f'| `{name}` | {" | ".join(_try(model, model.pretrained_cfg["input_size"]))} |', flush=True)
    return ''


def _try(model: nn.Module, input_size: Sequence[int]) -> list[str]:
    """Largest differences, or '-' where it cannot be done; the size of the file in 8 bits."""
    from ..publish.export import export

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
