"""`tinyvit-zoo predict`: classes of images."""
import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ZooError
from ..measure.accuracy import ViewAverage
from ..measure.prediction import classify, image_files, load_classifier, problem_of
from ..runtime.files import user_path
from ..runtime.text import as_csv, table
from ..runtime.world import choose_device
from ..weights.resolve import resolve
from ._options import Incomplete, positive

NAME = 'predict'
SUMMARY = 'classify images'
EXAMPLES = '''
tinyvit-zoo predict cct_7_3x1 cat.png
tinyvit-zoo predict runs/mine photos/
tinyvit-zoo predict cct_7_3x1.shi_c100_300e photos/ --topk 1 --csv > classes.csv
tinyvit-zoo predict cct_2_3x2 photos/ --weights trained.safetensors --device cuda
tinyvit-zoo predict hf-hub:ORG/NAME photo.png
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', metavar='MODEL', help='NAME[.TAG] (without TAG: the default weights), a run '
                        'directory, NAME[.TAG]=FILE, or hf-hub:ORG/NAME')
    parser.add_argument(
        'images', metavar='IMAGE', nargs='+', type=user_path, help='a file, or a folder (searched recursively)')
    parser.add_argument('--tta', choices=['flip', 'shift', 'flip+shift'], help='average the outputs for views of '
                        'each image, mirrored or shifted by a pixel')
    parser.add_argument('--topk', type=positive, metavar='K', help='classes to show (default: 5; for '
                        'multi-label weights all above 50 %%)')
    parser.add_argument('--batch-size', type=positive, default=32, metavar='N', help='default: 32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, mps, ... (default: cpu)')
    parser.add_argument(
        '--weights', type=user_path, metavar='FILE',
        help='load this .safetensors, .pth or .zip file; size, normalization and classes come from its metadata, '
             'else from NAME.TAG')
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument('--csv', action='store_true', help='print CSV: image, class, probability')
    shape.add_argument('--json', action='store_true', help='print JSON, with more fields')


def run(args: argparse.Namespace) -> str:
    resolved = resolve(f'{args.model}={args.weights}' if args.weights else args.model)
    choose_device(args.device)  # before anything is loaded
    paths = image_files(args.images)
    if all(problems := [problem_of(path) for path in paths]):  # before any weights are fetched
        raise ZooError(_problem(list(zip(paths, problems, strict=True))))
    model, labels, readout = load_classifier(resolved, args.device, min(args.batch_size, len(paths)))
    model = ViewAverage(model, args.tta) if args.tta else model
    results = list(zip(paths, classify(model, labels, paths, args.topk, args.batch_size, readout), strict=True))
    text, failed = _text(results), [(path, found) for path, found in results if isinstance(found, str)]
    if args.csv:
        text = as_csv(_rows(results) or [dict.fromkeys(('image', 'class', 'probability'), '')])
    elif args.json:
        images = [{'image': str(path), 'error' if isinstance(found, str) else 'predictions': found}
                  for path, found in results]
        weights = args.weights and str(args.weights)
        name = args.model if resolved.file and not args.weights else resolve(args.model).name
        text = json.dumps({'model': name, 'weights': weights, 'images': images}, indent=2)
    if failed:
        raise Incomplete(_problem(failed, len(paths)), text)
    return text


def _text(results: Sequence[tuple[Path, Any]]) -> str:
    rows, shown = [('image', 'probability', 'class')], ''
    for row in _rows(results):
        share = '-' if row['probability'] is None else f'{100 * row["probability"]:.2f} %'
        rows.append(('' if row['image'] == shown else row['image'], share, row['class']))
        shown = row['image']
    return table(rows, left=(0, 2))


def _rows(results: Sequence[tuple[Path, Any]]) -> list[dict[str, Any]]:
    """Return a row for each class of each image that could be read."""
    none = {'probability': None, 'label': 'none above 50 %'}
    return [{'image': str(path), 'class': guess['label'], 'probability': guess['probability']}
            for path, guesses in results if not isinstance(guesses, str) for guess in guesses or [none]]


def _problem(failed: Sequence[tuple[Path, str]], count: int = 0) -> str:
    """Name the images that cannot be read, ten at most."""
    names = ', '.join(f'{path} ({problem})' for path, problem in failed[:10])
    more = f', and {len(failed) - 10} more' if len(failed) > 10 else ''
    return (f'{len(failed)} of {count or len(failed)} images cannot be read; repair them or leave them out: '
            f'{names}{more}.')
