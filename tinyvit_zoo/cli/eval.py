"""`tinyvit-zoo eval`: accuracy, features and robustness of models on a dataset."""
import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..data.sources import Source
from ..errors import ZooError
from ..measure.accuracy import ViewAverage, calibrate, check_catalogue, check_table, evaluate, outputs
from ..measure.bench import Bench, check_size, knn, open_bench_source, probe, spread, tell_of_trained
from ..measure.calibration import plot_reliability
from ..measure.figures import FORMATS, Figures, figures_of, plot_confusion, plot_mistakes
from ..measure.robustness import Attack, attack_figures, attack_table, corruption_figures, errors_table, plot_robustness
from ..runtime.files import check_picture, user_path
from ..runtime.text import show, table
from ..runtime.world import autocast_dtype, join_world
from ..weights.resolve import resolve
from ._options import add_device, positive

NAME = 'eval'
SUMMARY = 'measure accuracy, features and robustness of weights'
EXAMPLES = '''
tinyvit-zoo eval cct_7_3x1 --data cifar10:PATH --per-class --confusion confusion.png
tinyvit-zoo eval runs/a runs/b ssl_vit.untrained --data digits --knn --probe
tinyvit-zoo eval runs/a --data folder:photos --calibrate
tinyvit-zoo eval --all --data c10=npz:FILE --data digits
'''
_COUNTED = {'train': 'training', 'val': 'validation', 'test': 'test', 'all': 'all'}
_LINE = 300     # most characters of a line that shows the order of the classes
# titles by option
_MEASURES = {'knn': 'k-NN', 'probe': 'probe', 'tta': 'views', 'corruptions': 'mCE', 'attack': 'attack'}
_PICTURES = {'confusion': 'the confusion matrix', 'reliability': 'the accuracy over the predicted probability',
             'mistakes': 'the worst mistakes'}
_RADIUS, _STEPS = 8., 20        # of attacks


# -- options -----------------------------------------------------------------------------------------------------------
def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'models', metavar='MODEL', nargs='*', help='NAME[.TAG] of the zoo or timm, NAME.untrained (random weights), '
        'NAME[.TAG]=FILE, or a run directory')
    parser.add_argument('--all', action='store_true', help='instead, compare all weights for the given data with the '
                        'catalogue; exit with code 1 if a figure differs')
    parser.add_argument(
        '--data', metavar='[KEY=]SOURCE', action='append', required=True, help='folder:DIR, csv:FILE, npz:FILE, '
        'hf:NAME, medmnist:NAME, cifar10:DIR, digits, ...; '
        'KEY (c10, c100, ...) names the data set of a file; may be repeated with --all')
    parser.add_argument('--split', default='test', choices=['test', 'val', 'train', 'all'], help='default: test, which '
                        'is a fifth of class folders without splits; all: all of their images, if no weights saw them')
    parser.add_argument('--download', action='store_true', help='download the data set if it is missing')
    measures = parser.add_argument_group('further measures')
    measures.add_argument('--knn', action='store_true', help='classify frozen features by their 20 nearest neighbours')
    measures.add_argument('--probe', action='store_true', help='train a linear classifier on frozen features; '
                          'a fifth of the training images chooses its regularization')
    measures.add_argument('--fraction', type=float, default=1., metavar='F', help='share of the training images for '
                          '--knn and --probe (default: 1)')
    measures.add_argument('--tta', choices=['flip', 'shift', 'flip+shift'], help='average the outputs for views '
                          'of each image, mirrored or shifted by a pixel')
    measures.add_argument('--calibrate', action='store_true', help='first fit the temperature to the validation images '
                          '(of a run: those it held out), and store it in the weight file')
    group = parser.add_argument_group('robustness')
    group.add_argument(
        '--corruptions', metavar='DIR', nargs='?', const=True, help='measure the error on CIFAR-10-C or CIFAR-100-C, '
        'unpacked in DIR; without DIR, on similar corruptions of the images of --data')
    group.add_argument('--attack', choices=['fgsm', 'pgd'], help='measure the accuracy under adversarial attack')
    group.add_argument('--radius', type=float, nargs='+', metavar='R',
                       help=f'radii of the attack in grey levels (1/255) (default: {_RADIUS:g})')
    group.add_argument('--steps', type=int, metavar='N', help=f'steps of pgd (default: {_STEPS})')
    group.add_argument('--plot', type=user_path, metavar='FILE',
                       help='plot corruptions and attack as .png, .pdf or .svg')
    shown = parser.add_argument_group('output')
    shown.add_argument('--per-class', action='store_true', help='print the accuracy of each class')
    for option, picture in _PICTURES.items():
        shown.add_argument(f'--{option}', type=user_path, metavar='FILE', help=f'draw {picture} as .png, .pdf or .svg')
    shown.add_argument('--bootstrap', type=positive, default=0, metavar='N', help='print 95 %% intervals from N '
                       'resamples of the images, e.g. 1000')
    shown.add_argument('--json', action='store_true', help='print JSON, with more fields')
    machine = parser.add_argument_group('computation')
    machine.add_argument('--precision', default='fp32', choices=['fp32', 'bf16', 'fp16', 'auto'],
                         help='default: fp32, as in the catalogue')
    machine.add_argument('--batch-size', type=positive, default=256, metavar='N', help='default: 256')
    add_device(machine)
    machine.add_argument('--img-size', type=positive, metavar='N', help='image side (default: of the weights)')


def run(args: argparse.Namespace) -> str:
    """Return the text to print. With --all, exit with code 1 where the catalogue is wrong."""
    _check(args)
    torch.backends.cudnn.allow_tf32 = False     # fp32 means fp32
    with join_world(args.device) as world:
        dtype = autocast_dtype(args.precision, world.device)

        def bench(spec: str, source: Source) -> Bench:
            resolved = resolve(spec)
            check_size(resolved, args.img_size, min(args.batch_size, len(getattr(source, args.split))), world.device)
            loaded = resolved.load(world.device, args.img_size)
            if args.split != 'train' and world.first:
                tell_of_trained(resolved, getattr(source, args.split), source.name)
            return Bench(loaded, source, args.split, world, dtype, args.batch_size)
        if args.all:
            return _check_catalogue(args, bench)
        source = open_bench_source(args.data[0], args.split, download=args.download, fraction=args.fraction)
        args.asked, args.split = args.split, 'test' if args.split == 'all' else args.split
        if source.train.multi_label:
            _check_several(source, args)
        if source.train.images.deep and (args.corruptions or args.attack):
            raise ZooError(f'--corruptions and --attack need 8-bit grey or RGB images, which {source.name} does not '
                           f'have: leave them out.')
        for spec in args.models if args.calibrate else ():
            resolved = resolve(spec)
            held = open_bench_source(args.data[0], 'train', download=args.download, **resolved.held_out)
            if held.val:
                tell_of_trained(resolved, held.val, f'{held.name} (validation)')
            calibrate(Bench(resolved.load(world.device), held, 'val', world, dtype, args.batch_size), resolved.file)
        try:
            records = [_record(bench(spec, source), args) for spec in args.models]
        except torch.OutOfMemoryError as e:
            raise ZooError(f'{world.device} is out of memory: use a smaller --batch-size.') from e
        if args.plot and world.first:
            sets = f'; {records[0]["corruptions"]["source"]}' if 'corruptions' in records[0] else ''
            plot_robustness(records[0], f'{records[0]["model"]} on {records[0]["data"]}{sets}', args.plot)
        return _text(records, args) if world.first else ''


def _check(args: argparse.Namespace) -> None:
    """Raise ZooError for impossible options, before anything is read."""
    asked = any(getattr(args, name) for name in _MEASURES)
    if bool(args.models) == args.all:
        raise ZooError('Give either MODEL... or --all: `tinyvit-zoo list --weights` lists all weights.')
    pictures = [name for name in _PICTURES if getattr(args, name)]
    if args.all and (asked or pictures or args.per_class or args.bootstrap or args.img_size or args.calibrate
                     or args.split != 'test'):
        raise ZooError('--all only compares the test accuracy with the catalogue: leave out other measures, '
                       'pictures, --per-class, --bootstrap, --calibrate, --img-size and --split.')
    if args.calibrate and args.img_size:
        raise ZooError('--calibrate uses the image size of the weights: leave out --img-size.')
    if args.bootstrap and len(args.models) > 1 and not args.json:
        raise ZooError('--bootstrap shows its intervals for one model, or in --json: add that, or evaluate one by one.')
    if len(args.data) > 1 and not args.all:
        raise ZooError('--data is given twice: give one data set (with --all, any number).')
    if args.fraction != 1 and not (args.knn or args.probe):
        raise ZooError('--fraction is for --knn and --probe: give one of them.')
    if args.split in ('train', 'all') and (args.knn or args.probe):
        raise ZooError('--knn and --probe train on the training images: give --split test or val.')
    if (args.radius or args.steps is not None) and not args.attack:
        raise ZooError('--radius and --steps are for attacks: give --attack pgd.')
    if args.attack == 'fgsm' and args.steps is not None:
        raise ZooError('--steps is for pgd, as fgsm takes one step: leave it out, or give --attack pgd.')
    if args.attack:
        _attacks(args)
    if args.plot and not (args.corruptions or args.attack):
        raise ZooError('--plot is for --corruptions and --attack: give one of them.')
    for option in ('plot', *pictures):
        if path := getattr(args, option):
            if len(args.models) > 1:
                raise ZooError(f'--{option} plots one model: give one MODEL.')
            check_picture(f'--{option}', path)


def _check_several(source: Source, args: argparse.Namespace) -> None:
    """Raise ZooError for measures and pictures that are of one label an image."""
    for name in ('confusion', 'mistakes', *_MEASURES):
        if getattr(args, name):
            raise ZooError(f'--{name} needs one label per image, and {source.name} has several: leave it out.')


def _attacks(args: argparse.Namespace) -> list[Any]:
    return [Attack(args.attack, radius, _STEPS if args.steps is None else args.steps)
            for radius in args.radius or [_RADIUS]]


# -- measuring ---------------------------------------------------------------------------------------------------------
def _record(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Return all figures of a model, as --json shows them."""
    asked = [name for name in _MEASURES if getattr(args, name)]
    loaded = bench.loaded
    if not asked or any(getattr(args, name) for name in _PICTURES):
        bench.check_classes('give --knn or --probe to evaluate its features, or the data it was trained on')
    return {
        'model': loaded.title, 'data': bench.source.name, 'split': args.asked, 'epochs': loaded.epochs,
        'parameters': sum(p.numel() for p in loaded.model.parameters()), 'input_size': list(loaded.cfg['input_size']),
        'precision': str(bench.dtype or 'torch.float32').removeprefix('torch.'), 'device': str(bench.world.device),
        **({} if bench.class_mismatch else _accuracy(bench, args)),
        **{name: _measure(name, bench, args) for name in asked}}


def _measure(name: str, bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    if name == 'knn':
        return {'top1': knn(*bench.features, num_classes=bench.num_classes), 'spread': spread(bench.features[2])}
    if name == 'probe':
        return probe(*bench.features, num_classes=bench.num_classes)
    if name == 'tta':
        bench.check_classes()
        if 'flip' in args.tta and bench.source.info and not bench.source.info.mirrored:
            raise ZooError(f'{bench.source.name} must not be mirrored: use --tta shift.')
        model = ViewAverage(bench.loaded.model, args.tta)
        return {'views': args.tta, **evaluate(model, bench.batches(), bench.world, bench.dtype)}
    if name == 'attack':
        return attack_figures(bench, _attacks(args))
    return corruption_figures(bench, None if args.corruptions is True else user_path(args.corruptions))


def _check_catalogue(args: argparse.Namespace, make_bench: Callable[[str, Any], Bench]) -> str:
    rows = check_catalogue(args.data, make_bench, download=args.download)
    text = json.dumps(rows, indent=2) if args.json else check_table(rows)
    if any(row['outcome'] == 'DIFFERS' for row in rows):
        show(text)
        raise SystemExit(1)
    return text


def _accuracy(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Return all figures of the outputs, and draw the pictures asked for."""
    names, loaded = bench.class_names, bench.loaded
    logits, labels = outputs(loaded.model, bench.batches(), bench.world, bench.dtype)
    figures = figures_of(logits, labels, names, args.bootstrap, readout=loaded.readout)
    if bench.world.first:
        title = f'{loaded.title} on {bench.source.name}, {_COUNTED[args.asked]} images: {figures.headline}'
        if args.confusion and isinstance(figures, Figures):
            plot_confusion(figures.confusion, names, title, args.confusion)
        if args.reliability:
            plot_reliability(logits, labels, title, args.reliability, loaded.readout)
        if args.mistakes:
            plot_mistakes(logits / (figures.temperature or 1), labels, getattr(bench.source, bench.split), names, title,
                          args.mistakes)
    return figures.to_dict()


# -- showing -----------------------------------------------------------------------------------------------------------
def _text(records: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    if args.json:
        return json.dumps(records, indent=2)
    many = len(records) > 1
    parts = [_many(records) if many else _one(records[0])]
    parts += [_classes(record, many) for record in records if args.per_class]
    parts += [f'{record["model"]}\n{show(record[name])}' for record in records
              for name, show in (('corruptions', errors_table), ('attack', attack_table)) if name in record]
    parts += [f'{args.plot}: error over severity and radius'] if args.plot else []
    parts += [f'{path}: {picture}' for name, picture in _PICTURES.items() if (path := getattr(args, name))]
    return '\n\n'.join(parts)


def _one(record: Mapping[str, Any]) -> str:
    lines = [('input', f'{" x ".join(map(str, record["input_size"]))}, {record["precision"]} on {record["device"]}'),
             ('data', f'{record["data"]}, {_COUNTED[record["split"]]} images')]
    if 'loss' in record:
        lines += [('images', f'{record["images"]:,}')]
        lines += [(title, _figure(record, name) if name in record else '-, needs images of two classes')
                  for name, (title, _) in FORMATS.items() if name in record or name == 'auroc']
        if lacking := [row['class'] for row in record['classes'] if not row['images']]:
            means = f'{"balanced accuracy, " * ("top1" in record)}AUROC and AP'
            names = ', '.join(lacking[:5]) + ', ...' * (len(lacking) > 5)
            lines += [('no images', f'of {names}: {means} are means over the other classes; F1 '
                       f'counts those that are predicted as 0')]
    lines += [(title, f'{_cell(record, name)} %') for name, title in _MEASURES.items() if name in record]
    return '\n'.join([f'{record["model"]}: {record["parameters"]:,} parameters',
                      *(f'  {title:10}{text}' for title, text in lines)])


def _figure(record: Mapping[str, Any], name: str) -> str:
    """Return a figure with its unit and its interval: Wilson's of the top-1, a bootstrap's of the others."""
    # where all answers are right or wrong, so are those of every resample
    form, intervals = FORMATS[name][1], {**record.get('intervals', {}), 'top1': record.get('interval')}
    low, high = intervals.get(name) or (None, None)
    interval = '' if low is None else f', 95 % interval {low:{form}} to {high:{form}}'
    scaled = f', temperature {record["temperature"]:.3f}' if name == 'calibrated_error' else ''
    return f'{record[name]:{form}}{" %" if form == ".2f" else ""}{interval}{scaled}'


def _many(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a line for each model; '-' where it has no accuracy on these classes."""
    asked = [name for name in _MEASURES if name in records[0]]
    titles = [_MEASURES[name] for name in asked]
    own = [name for name in FORMATS if name not in ('micro_f1', 'calibrated_error')]
    head = ['model', 'M params', 'epochs', *(FORMATS[name][0] for name in own), *titles]
    head.insert(head.index('top-1') + 1, '95 % interval')
    rows = []
    for record in records:
        row = [record['model'], f'{record["parameters"] / 1e6:.2f}', str(record['epochs'] or '-'), *(
            f'{record[name]:{FORMATS[name][1]}}' if name in record else '-' for name in own)]
        row.insert(head.index('95 % interval'), '{:.2f} to {:.2f}'.format(*record['interval'])
                   if 'interval' in record else '-')
        rows.append([*row, *(_cell(record, name) for name in asked)])
    kept = [i for i in range(len(head)) if any(row[i] != '-' for row in rows)]
    return table([[row[i] for i in kept] for row in (head, *rows)])


def _cell(record: Mapping[str, Any], name: str) -> str:
    """Return the figure that stands for a measure, in percent; of an attack that at the largest radius."""
    figures = record[name]
    if name == 'attack':
        return f'{max(zip(figures["radii"], figures["top1s"], strict=True))[1]:.2f}'
    return f'{figures["mce" if name == "corruptions" else "top1"]:.2f}'


def _classes(record: Mapping[str, Any], titled: bool) -> str:
    if 'classes' not in record:
        return f'{record["model"]}: no accuracy, and none by class.'
    if 'accuracy' in record:
        return (f'{record["model"]}\n' if titled else '') + _labels(record)
    rows = [('class', 'images', 'top-1', '95 % interval', 'precision', 'F1', 'AUROC', 'AP', 'most taken for')]
    for row in record['classes']:
        taken = f'{row["most_taken_for"]} ({row["times"]})' if row['times'] else '-'
        interval = '{:.2f} to {:.2f}'.format(*row['interval']) if row['images'] else '-'
        figures = ['-' if row[key] is None else f'{row[key]:{unit}}' for key, unit in (
            ('top1', '.2f'), ('precision', '.2f'), ('f1', '.2f'), ('auroc', '.4f'), ('average_precision', '.4f'))]
        rows.append((row['class'], str(row['images']), figures[0], interval, *figures[1:], taken))
    order = ' < '.join(row['class'] for row in record['classes'])
    kappa = f'\nkappa (quadratic weights), if the classes are grades {order}: {record["kappa"]:.4f}'
    kappa = kappa if 'kappa' in record and len(kappa) < _LINE else ''
    return (f'{record["model"]}\n' if titled else '') + table(rows, left=(0, 8)) + kappa


def _labels(record: Mapping[str, Any]) -> str:
    """Return a table of the classes where an image may have several labels."""
    shown = {'accuracy': 'ACC', 'precision': 'precision', 'recall': 'recall', 'f1': 'F1', 'auroc': 'AUROC',
             'average_precision': 'AP'}
    rows = [('class', 'images', 'predicted', *shown.values())]
    for row in record['classes']:
        forms = (FORMATS.get(key, FORMATS['accuracy'])[1] for key in shown)
        figures = ['-' if row[key] is None else f'{row[key]:{form}}' for key, form in zip(shown, forms, strict=True)]
        rows.append((row['class'], str(row['images']), str(row['predicted']), *figures))
    return table(rows)
