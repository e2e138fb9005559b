"""`tinyvit-zoo analyze KIND MODEL...`: a picture, and beside it the numbers as npz."""
import argparse
import re
from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import numpy as np
import timm

from ..errors import ZooError, nearest
from ..interpret import analyses
from ..models import list_models
from ..runtime.files import require_matplotlib, user_path, write_picture, written_whole
from ..runtime.text import table
from ..runtime.world import join_world
from ..weights.resolve import check_model, resolve
from ._options import add_device, positive

NAME = 'analyze'
SUMMARY = 'plot attention, layer similarity and other analyses, and save the numbers'
EXAMPLES = '''
tinyvit-zoo analyze attention runs/a mae_vit_c10=b.safetensors --data cifar10:PATH
tinyvit-zoo analyze maps cct_7_3x1 --files photos/
tinyvit-zoo analyze support sl_
'''

_KINDS = {      # summary and default of --images
    'attention': ('plot distance and entropy of attention by layer and head', 256),
    'similarity': ('compare the layers of one or two models by minibatch CKA', 1024),
    'maps': ('plot the attention maps of heads, and attention rollout', 4),
    'pooling': ('plot the weights of sequence pooling', 256),
    'temperatures': ('plot the learned temperatures of locality attention', 0),
    'positions': ('plot the similarity of position embeddings', 0),
    'support': ('list the analyses that each model supports', 0),
}


def add(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title='analyses', metavar='KIND', dest='kind', required=True)
    for name, (summary, images) in _KINDS.items():
        kind = kinds.add_parser(name, help=summary, description=f'{summary[0].upper()}{summary[1:]}.')
        kind.add_argument('models', metavar='MODEL', nargs='*' if name == 'support' else '+', help=(
            'NAME[.TAG] of the zoo or timm, NAME.untrained, NAME=FILE, or a run directory'
            if name != 'support' else 'start of a name, or a pattern with wildcards (default: all)'))
        if name == 'support':
            continue
        kind.add_argument('--output', type=user_path, default=Path('analysis'), metavar='DIR',
                          help='default: analysis/')
        kind.add_argument('--format', default='png', choices=['png', 'pdf', 'svg'], help='default: png')
        add_device(kind)
        if images:
            kind.add_argument('--data', metavar='SOURCE', help='folder:DIR, csv:FILE, npz:FILE, hf:NAME, digits, ...')
            kind.add_argument('--split', default='test', choices=['train', 'val', 'test'],
                              help='split of SOURCE (default: test)')
            kind.add_argument('--files', type=user_path, nargs='+', metavar='IMAGE',
                              help='image files and folders, instead of --data')
            kind.add_argument('--images', type=positive, default=images, metavar='N',
                              help=f'number of random images (default: {images})')
            kind.add_argument('--seed', type=int, default=0, help='seed of the random images')
        if name == 'similarity':
            kind.add_argument('--batch-size', type=positive, default=256, metavar='N',
                              help='images per estimate (default: 256)')
        if name == 'maps':
            kind.add_argument('--layer', type=int, default=-1, metavar='I',
                              help='layer to show (default: -1, the last)')
            kind.add_argument('--query', metavar='ROW,COL', help='patch whose attention to show (default: the class '
                                                                 'token, or the mean of all patches)')


def run(args: argparse.Namespace) -> str:
    """Write the pictures and their numbers; return a summary."""
    if args.kind == 'support':
        return _support(args.models)
    require_matplotlib()
    if args.kind == 'similarity' and len(args.models) > 2:
        raise ZooError(f'{len(args.models)} models are given, expected one or two.')
    if len(set(args.models)) < len(args.models):
        raise ZooError('A model is given twice: give it once.')
    if len({_path(args, spec, 'npz') for spec in args.models}) < len(args.models):
        raise ZooError('The files of the two models would have the same name: analyze each into its own --output.')
    options = _options(args)
    with join_world(args.device) as world:
        models = [resolve(spec).load(world.device) for spec in args.models]
        for loaded in models:
            analyses.check_supported(loaded, args.kind)
        if _KINDS[args.kind][1]:
            images = analyses.open_images(args.data, args.split, args.files)
            options['images'] = analyses.draw_images(images, args.images, args.seed)
        results = getattr(analyses, f'analyze_{args.kind}')(models, **options)
    return '\n'.join(line for result in results for line in (result.text, _write(args, result)))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of this kind alone."""
    if args.kind == 'similarity':
        return {'batch_size': args.batch_size}
    if args.kind != 'maps':
        return {}
    if args.query is not None and not re.fullmatch(r'\d+,\d+', args.query):
        raise ZooError(f'--query is {args.query!r}, expected ROW,COL of a patch, e.g. 3,4.')
    return {'layer': args.layer, 'patch': args.query and tuple(map(int, args.query.split(',')))}


def _write(args: argparse.Namespace, analysis: analyses.Analysis) -> str:
    """Write the arrays of each model, and the picture; return a line that names it."""
    args.output.mkdir(parents=True, exist_ok=True)
    for title, arrays in analysis.arrays.items():
        with written_whole(_path(args, title, 'npz')) as partial:
            np.savez_compressed(partial, **arrays)
    path = _path(args, '-'.join(analysis.arrays), args.format)
    write_picture(analysis.figure, path)
    return f'picture: {path}, numbers beside it as .npz'


def _path(args: argparse.Namespace, title: str, ending: str) -> Path:
    name = re.sub(r'[^\w.-]+', '_', f'{args.kind}-{title}').strip('_')
    return args.output / f'{name}.{ending}'


def _support(patterns: Sequence[str]) -> str:
    """Return a table of the analyses that each model can have, with a footnote for each reason why not."""
    names: list[str] = []
    for pattern in patterns or ['*']:
        wild = pattern if any(c in pattern for c in '*?[') else f'{pattern}*'
        matches = matching(list_models(), wild)
        if not matches and timm.is_model(pattern):
            check_model(pattern)    # its tag too
            matches = [pattern.partition('.')[0]]
        names += matches
        if not matches:
            raise ZooError(f'No model matches {pattern!r}.{nearest(pattern, list_models())}')
    notes: dict[str, int] = {}
    rows = []
    for name in dict.fromkeys(names):
        reasons = analyses.unsupported(timm.create_model(name, device='meta'))
        rows.append([name, *(f'({notes.setdefault(why, len(notes) + 1)})' if why else 'yes'
                             for why in reasons.values())])
    rows.insert(0, ['model', *reasons])
    footnotes = (f'({number}) {why}' for why, number in notes.items())
    return '\n'.join([table(rows, left=range(len(rows[0]))), '', *footnotes])
