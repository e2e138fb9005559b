"""`tinyvit-zoo predict`: classes of images."""
import argparse
import json
from pathlib import Path

from ..measure.accuracy import ViewAverage
from ..measure.prediction import check_image, classify, image_files, load_classifier
from ..models import with_tag
from ..runtime.text import table
from ..runtime.world import choose_device
from ._options import positive

NAME = 'predict'
SUMMARY = 'classify images'
EXAMPLES = '''
tinyvit-zoo predict cct_7_3x1 cat.png
tinyvit-zoo predict cct_7_3x1.shi_c100_300e photos/ --topk 3 --json
tinyvit-zoo predict cct_2_3x2 photos/ --weights trained.safetensors --device cuda
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', metavar='NAME[.TAG]', help='without TAG the default weights, those of pretrained=True')
    parser.add_argument(
        'images', metavar='IMAGE', nargs='+', type=Path, help='a file, or a folder, which is searched recursively')
    parser.add_argument('--tta', choices=['flip', 'shift', 'flip+shift'], help='average the outputs for several views '
                        'of each image, mirrored or moved by a pixel')
    parser.add_argument('--topk', type=positive, default=5, metavar='K', help='classes to show (default: 5)')
    parser.add_argument('--batch-size', type=positive, default=32, metavar='N', help='default: 32')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, mps, ... (default: cpu)')
    parser.add_argument(
        '--weights', type=Path, metavar='FILE',
        help='load this .safetensors, .pth or .zip file; size, normalization and classes are those of its metadata, '
             'else those of NAME.TAG')
    parser.add_argument('--json', action='store_true', help='print JSON, with more fields')


def run(args: argparse.Namespace) -> str:
    name = with_tag(args.model)
    choose_device(args.device)  # before anything is loaded
    paths = image_files(args.images)
    for path in paths:
        check_image(path)  # before any weights are fetched
    model, labels = load_classifier(name, args.weights, args.device)
    model = ViewAverage(model, args.tta) if args.tta else model
    results = list(zip(paths, classify(model, labels, paths, args.topk, args.batch_size), strict=True))
    if args.json:
        images = [{'image': str(path), 'predictions': guesses} for path, guesses in results]
        return json.dumps({'model': name, 'weights': args.weights and str(args.weights), 'images': images}, indent=2)
    rows = [(str(path) if i == 0 else '', f'{100 * guess["probability"]:.2f} %', guess['label'])
            for path, guesses in results for i, guess in enumerate(guesses)]
    return table([('image', 'probability', 'class'), *rows], left=(0, 2))
