"""`tinyvit-zoo eval --corruptions` and `--attack`: options, and what they give."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ZooError
from ..runtime.picture import check_picture

if TYPE_CHECKING:
    from ..measure.evaluation import Bench

_RADIUS, _STEPS = 8., 20


def add_robustness(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('robustness')
    group.add_argument(
        '--corruptions', metavar='DIR', nargs='?', const=True, help='error on the fifteen corruptions of CIFAR-10-C or '
        'CIFAR-100-C, unpacked in DIR; without DIR on similar ones of our own, made of the images of --data')
    group.add_argument('--attack', choices=['fgsm', 'pgd'], help='accuracy on images changed so that the model errs')
    group.add_argument(
        '--radius', type=float, nargs='+', metavar='R', help=f'of the attack in grey levels (1/255), one or several '
        f'(default: {_RADIUS:g})')
    group.add_argument('--steps', type=int, metavar='N', help=f'of pgd (default: {_STEPS})')
    group.add_argument('--plot', type=Path, metavar='FILE', help='their picture, as .png, .pdf or .svg')


def check_robustness(args: argparse.Namespace) -> None:
    """What is wrong with the options, before anything is read."""
    if (args.radius or args.steps is not None) and not args.attack:
        raise ZooError('--radius and --steps are of an attack: give --attack pgd.')
    if args.attack == 'fgsm' and args.steps is not None:
        raise ZooError('--steps is of pgd, fgsm has one: leave it out, or give --attack pgd.')
    if args.attack:
        _attacks(args)
    if args.plot:
        _check_plot(args)


def _check_plot(args: argparse.Namespace) -> None:
    if not (args.corruptions or args.attack):
        raise ZooError('--plot draws --corruptions and --attack: give one of them.')
    if len(args.models) > 1:
        raise ZooError('--plot draws one model: give one MODEL.')
    check_picture('--plot', args.plot)


def _attacks(args: argparse.Namespace) -> list[Any]:
    from ..measure.attacks import Attack

    return [Attack(args.attack, radius, _STEPS if args.steps is None else args.steps)
            for radius in args.radius or [_RADIUS]]


def corruption_figures(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """'mce' (the mean corruption error, %), 'clean', 'errors' by corruption and severity, 'source'."""
    from ..measure.accuracy import evaluate
    from ..measure.corruptions import CORRUPTIONS
    from ..measure.robustness import OURS, corrupted, corruption_errors, mean_corruption_error, open_published
    from ..runtime.progress import Progress

    _check_classes(bench)

    def top1(batches: Any) -> float:
        normalized = ((bench.normalize(images), labels) for images, labels in batches)
        return evaluate(bench.loaded.model, normalized, bench.world, bench.dtype)['top1']

    names, source, images = CORRUPTIONS, OURS, bytes_of(bench)
    batches: Any = partial(corrupted, images)
    if args.corruptions is not True:
        published = open_published(Path(args.corruptions).expanduser(), bench.classes)
        names, source = published.files, str(published.folder)

        def batches(name: str, severity: int) -> Any:
            return bytes_of(bench, published.split(name, severity))

    clean = 100 - top1(images)
    with Progress(5 * len(names), 'corruptions', 'set', quiet=not bench.world.first) as progress:
        errors = corruption_errors(names, batches, top1, lambda done: progress.show(
            done, names[(done - 1) // 5].replace('_', ' ')))
    return {'mce': mean_corruption_error(errors), 'clean': clean, 'errors': errors, 'source': source}


def attack_figures(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """'name', 'steps', 'radii' (1/255), and 'top1s' for each."""
    import torch

    from ..measure.attacks import count_robust
    from ..runtime.progress import Progress

    _check_classes(bench)
    attacks, batches = _attacks(args), bytes_of(bench)
    with Progress(len(attacks) * len(batches), args.attack, 'batch', quiet=not bench.world.first) as progress:
        counts = count_robust(bench.loaded.model, batches, bench.normalize, attacks, show=progress.show)
    *right, count = bench.world.sum(torch.tensor(counts, device=bench.world.device)).tolist()
    return {'name': args.attack, 'steps': attacks[0].steps if args.attack == 'pgd' else 1,
            'radii': [attack.radius for attack in attacks], 'top1s': [100 * found / count for found in right]}


def bytes_of(bench: Bench, split: Any = None) -> Any:
    """uint8 batches of a split or of the images judged on, resized and cropped as the weights want it."""
    return bench.batches(split or bench.split, normalized=False)


def _check_classes(bench: Bench) -> None:
    from ..measure.evaluation import why_no_accuracy

    if reason := why_no_accuracy(bench):
        raise ZooError(f'{reason}: give the data it was trained on.')


def mce_cell(figure: Mapping[str, Any]) -> str:
    return f'{figure["mce"]:.2f}'


def attack_cell(figure: Mapping[str, Any]) -> str:
    """At the largest radius."""
    return f'{max(zip(figure["radii"], figure["top1s"], strict=True))[1]:.2f}'


def corruption_text(figure: Mapping[str, Any]) -> str:
    from ..measure.robustness import errors_table

    return errors_table(figure['errors'], figure['clean'], figure['source'])


def attack_text(figure: Mapping[str, Any]) -> str:
    from ..measure.robustness import attack_table

    return attack_table(figure)


def draw_robustness(record: Mapping[str, Any], path: Path) -> None:
    from ..measure.robustness import plot_robustness

    source = f'; {record["corruptions"]["source"]}' if 'corruptions' in record else ''
    plot_robustness(record, f'{record["model"]} on {record["data"]}{source}', path)
