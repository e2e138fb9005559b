"""`tinyvit-zoo list`: models and their weights."""
import argparse
import json
from fnmatch import fnmatchcase

from timm.models import get_arch_pretrained_cfgs

from ..errors import ZooError, nearest
from ..models import list_models
from ..runtime.text import table
from .info import describe

NAME = 'list'
SUMMARY = 'list models and their weights'
EXAMPLES = '''
tinyvit-zoo list cct
tinyvit-zoo list '*c100*' --weights --json
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'pattern', metavar='PATTERN', nargs='?', default='*',
        help='names to show, with wildcards * ? [abc]; cct is short for cct*')
    parser.add_argument(
        '--weights', action=argparse.BooleanOptionalAction, help='show only models with weights, or without')
    parser.add_argument('--json', action='store_true', help='print JSON, with more fields')


def run(args: argparse.Namespace) -> str:
    records = [describe(name) for name in _matching(args.pattern, args.weights)]
    if args.json:
        return json.dumps([{k: v for k, v in record.items() if k != 'label_names'} for record in records], indent=2)
    rows = [('name', 'parameters', 'input', 'data set', 'published', 'measured', 'from')]
    for record in records:
        name, cells, weights = record['architecture'], ('-', '-', '-', '-'), record['weights']
        if weights:
            figures = weights['published'], weights['measured']
            tops = (f'{figure["top1"]:.2f}' if figure else '-' for figure in figures)
            name, cells = record['name'], (weights['dataset'], *tops, weights['kind'])
        rows.append((name, f'{record["parameters"] / 1e6:.2f} M', 'x'.join(map(str, record['input_size'])), *cells))
    models, count = len({r['architecture'] for r in records}), sum(r['weights'] is not None for r in records)
    return (f'{table(rows, left=(0, 2, 3, 6))}\n\n'
            f'Models: {models}, weights: {count}; the first weights of a model are its default.\n'
            f'Top-1 accuracy in %: published by the paper, and measured by us (-: no figure).')


def _matching(pattern: str, with_weights: bool | None) -> list[str]:
    """Return `NAME.TAG` of all that match, `NAME.untrained` where there are no weights."""
    pattern = pattern if any(c in pattern for c in '*?[') else f'{pattern}*'
    cfgs = [cfg for model in list_models() for cfg in get_arch_pretrained_cfgs(model).values()
            if with_weights in (None, bool(cfg.has_weights))]
    names = [f'{cfg.architecture}.{cfg.tag}' for cfg in cfgs
             if fnmatchcase(cfg.architecture, pattern) or fnmatchcase(f'{cfg.architecture}.{cfg.tag}', pattern)]
    if not names:
        kind = {None: '', True: ' with weights', False: ' without weights'}[with_weights]
        known = dict.fromkeys(name for cfg in cfgs for name in (cfg.architecture.split('_')[0], cfg.architecture))
        raise ZooError(f'No model{kind} matches {pattern!r}.{nearest(pattern.strip("*"), known)} '
                       f'`tinyvit-zoo list` shows all.')
    return names
