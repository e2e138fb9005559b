"""`tinyvit-zoo compare`: models side by side."""
import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..data.datasets import DATASETS
from ..errors import ZooError
from ..measure import comparison
from ..recipes import RECIPES
from ..runtime.files import check_picture, user_path, write_picture
from ..runtime.text import as_csv, table
from ..runtime.world import join_world
from ..training.cost import total_pflop
from ._options import add_formats, add_img_size, duration, positive

NAME = 'compare'
SUMMARY = 'compare models by parameters, multiply-adds, accuracy and speed'
EXAMPLES = '''
tinyvit-zoo compare cct_7_3x1 cvt_7_4 vit_lite_7_4 --plot compare.png
tinyvit-zoo compare 'cct_2*' 'cct_4*' --dataset c10 --no-speed --plot-cost cost.png
tinyvit-zoo compare resnet18 cct_7_3x1 sl_vit --dataset c10 --img-size 32 --device cuda
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', metavar='NAME[.TAG]', nargs='+',
                        help='models of the zoo or timm; wildcards match the zoo; the first is the baseline')
    parser.add_argument('--dataset', choices=DATASETS, metavar='SET',
                        help=f'data set of the accuracies: {", ".join(DATASETS)} (default: of the first weights)')
    add_img_size(parser)
    parser.add_argument('--speed', action=argparse.BooleanOptionalAction, default=True,
                        help='time inference, or not')
    parser.add_argument('--batch-size', type=positive, default=32, metavar='N', help='of timing (default: 32)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    parser.add_argument('--precision', default='fp32', choices=['fp32', 'bf16'], help='default: fp32')
    parser.add_argument('--seconds', type=duration, default=10., metavar='S', help='duration of timing (default: 10)')
    parser.add_argument('--plot', type=user_path, metavar='FILE', help='plot the table as .png, .pdf or .svg')
    parser.add_argument('--plot-cost', type=user_path, metavar='FILE',
                        help='plot accuracy over the cost of training, of our weights and the papers\'')
    add_formats(parser, 'print JSON, with the machine')


def run(args: argparse.Namespace) -> str:
    names, about = comparison.find_names(args.names), None
    for option, path in (('--plot', args.plot), ('--plot-cost', args.plot_cost)):
        if path:
            check_picture(option, path)
    dataset = args.dataset or comparison.default_dataset(names)
    rows = [comparison.comparison_row(name, dataset, args.img_size) for name in names]
    if args.plot_cost:
        if not dataset:
            raise ZooError('--plot-cost needs a data set: give --dataset.')
        write_picture(comparison.plot_costs(training_costs(rows, dataset), dataset), args.plot_cost)
    if args.speed:
        with join_world(args.device) as world:
            about = comparison.add_speeds(rows, world.device, args.batch_size, args.precision, args.seconds)
    if args.plot:
        write_picture(comparison.plot_comparison(rows, dataset, about), args.plot)
    if args.csv:
        return as_csv(rows)
    return json.dumps({'machine': about, 'models': rows}, indent=2) if args.json else _text(rows, dataset, about)


def training_costs(rows: Sequence[dict[str, Any]], dataset: str) -> list[tuple[str, str, float, float]]:
    """Return the recipes of the models with their accuracy, measured or published, and the cost of their training."""
    points = [(row['weights'], 'measured', row['measured']) for row in rows
              if row['weights'] in RECIPES and row['measured'] is not None]
    models = {row['name'].partition('.')[0] for row in rows}
    points += [(recipe.name, 'published', recipe.published) for recipe in RECIPES.values()
               if recipe.published and recipe.dataset == dataset and recipe.model in models]
    return [(name, kind, total_pflop(name), top1) for name, kind, top1 in points]


def _text(rows: Sequence[dict[str, Any]], dataset: str | None, about: dict[str, Any] | None) -> str:
    head = ['model', 'weights', 'input', 'M parameters', 'M MACs', 'measured', 'published']
    lines = [head + (['images/s', 'ratio', 'range'] if about else [])]
    for row in rows:
        accuracies = ['-' if row[key] is None else f'{row[key]:.2f}' for key in ('measured', 'published')]
        lines.append([row['name'], (row['weights'] or '-').rpartition('.')[2], 'x'.join(map(str, row['input_size'])),
                      f'{row["params"] / 1e6:.2f}', f'{row["macs"] / 1e6:.1f}', *accuracies])
        if about:
            low, high = row['ratio_range']
            lines[-1] += [f'{row["images_per_second"]:.1f}', f'{row["ratio"]:.2f}', f'{low:.2f}-{high:.2f}']
    on = f' on {DATASETS[dataset].title}' if dataset else ''
    text = [table(lines, left=(0, 1)), '', f'Top-1 accuracy in %{on}: measured by us, and published by the paper.']
    if about:
        text.append(f'Inference in turn, {comparison.conditions(about)}; ratio of speed to {rows[0]["name"]}, the '
                    f'range over {rows[0]["rounds"]} rounds.')
    return '\n'.join(text)
