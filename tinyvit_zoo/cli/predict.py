"""`tinyvit-zoo predict`: classes of images."""
import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ZooError
from ..measure.accuracy import ViewAverage
from ..measure.prediction import classify, image_files, load_classifier, problem_of
from ..models import with_tag
from ..runtime.text import table
from ..runtime.world import choose_device
from ._options import Incomplete, positive

NAME = 'predict'
SUMMARY = 'classify images'
EXAMPLES = '''
tinyvit-zoo predict cct_7_3x1 cat.png
tinyvit-zoo predict runs/mine photos/
tinyvit-zoo predict cct_7_3x1.shi_c100_300e photos/ --topk 3 --json
tinyvit-zoo predict cct_2_3x2 photos/ --weights trained.safetensors --device cuda
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', metavar='MODEL', help='NAME[.TAG] (without TAG: the default weights), or a run '
                        'directory')
    parser.add_argument(
        'images', metavar='IMAGE', nargs='+', type=Path, help='a file, or a folder (searched recursively)')
    parser.add_argument('--tta', choices=['flip', 'shift', 'flip+shift'], help='average the outputs for views of '
                        'each image, mirrored or shifted by a pixel')
    parser.add_argument('--topk', type=positive, metavar='K', help='classes to show (default: 5; for '
                        'multi-label weights all above 50 %%)')
    parser.add_argument('--batch-size', type=positive, default=32, metavar='N', help='default: 32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, mps, ... (default: cpu)')
    parser.add_argument(
        '--weights', type=Path, metavar='FILE',
        help='load this .safetensors, .pth or .zip file; size, normalization and classes come from its metadata, '
             'else from NAME.TAG')
    parser.add_argument('--json', action='store_true', help='print JSON, with more fields')


def run(args: argparse.Namespace) -> str:
    run_directory = not args.weights and Path(args.model).is_dir()
    name = args.model if run_directory else with_tag(args.model)
    choose_device(args.device)  # before anything is loaded
    paths = image_files(args.images)
    if all(problems := [problem_of(path) for path in paths]):  # before any weights are fetched
        raise ZooError(_problem(list(zip(paths, problems, strict=True))))
    model, labels, readout = load_classifier(name, args.weights, args.device)
    model = ViewAverage(model, args.tta) if args.tta else model
    results = list(zip(paths, classify(model, labels, paths, args.topk, args.batch_size, readout), strict=True))
    text, failed = _text(results), [(path, found) for path, found in results if isinstance(found, str)]
    if args.json:
        images = [{'image': str(path), 'error' if isinstance(found, str) else 'predictions': found}
                  for path, found in results]
        weights = args.weights and str(args.weights)
        text = json.dumps({'model': name, 'weights': weights, 'images': images}, indent=2)
    if failed:
        raise Incomplete(_problem(failed, len(paths)), text)
    return text


def _text(results: Sequence[tuple[Path, Any]]) -> str:
    none = {'probability': None, 'label': 'none above 50 %'}
    rows = [(str(path) if i == 0 else '', '-' if guess is none else f'{100 * guess["probability"]:.2f} %',
             guess['label'])
            for path, guesses in results if not isinstance(guesses, str) for i, guess in enumerate(guesses or [none])]
    return table([('image', 'probability', 'class'), *rows], left=(0, 2))


def _problem(failed: Sequence[tuple[Path, str]], count: int = 0) -> str:
    """Name the images that cannot be read, ten at most."""
    names = ', '.join(f'{path} ({problem})' for path, problem in failed[:10])
    more = f', and {len(failed) - 10} more' if len(failed) > 10 else ''
    return (f'{len(failed)} of {count or len(failed)} images cannot be read; repair them or leave them out: '
            f'{names}{more}.')
