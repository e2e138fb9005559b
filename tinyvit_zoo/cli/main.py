"""The command `tinyvit-zoo`: what there is, what it is, what it sees, and whether timm finds it by itself.

A command returns the text it has to say, so that one that fails has printed nothing. What is slow to import is imported
where it is used.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ZooError, nearest
from ..runtime.text import table
from ..version import __version__

if TYPE_CHECKING:
    pass

__all__ = ['main']

_NOT_MEASURED = 'not measured yet'


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 2 for a mistake of the caller's; 130 and 141 (as shells say it) for Ctrl-C and a closed pipe."""
    args, unknown = _parser().parse_known_args(argv)
    if unknown and args.run not in (_train, _pretrain):
        _parser().parse_args(argv)  # says what it does not know
    args.unknown, args.argv = unknown, sys.argv[1:] if argv is None else argv
    try:
        text, encoding = args.run(args), sys.stdout.encoding or 'utf-8'
        if text:
            print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)  # file names hold any bytes
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except KeyboardInterrupt:
        return 130
    except ZooError as e:
        return _complain(str(e))
    except OSError as e:
        if not e.filename:
            raise
        return _complain(f'{e.filename}: {e.strerror}')


def _complain(message: str) -> int:
    print(f'tinyvit-zoo: {" ".join(message.split())}', file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_complain(f'{message} (see `{self.prog} --help`)'))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='tinyvit-zoo', description='Small vision transformers for small data sets, for timm.',
        epilog='example: tinyvit-zoo list cct --weights')
    parser.add_argument('--version', action='version', version=f'tinyvit-zoo {__version__}')
    commands = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for add in (
            _add_list, _add_info, _add_predict, _add_recipes, _add_train, _add_pretrain, _add_fractions, _add_eval,
            _add_analyze, _add_count, _add_compare, _add_export, _add_publish, _add_autoload):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, epilog: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f'{summary[0].upper()}{summary[1:]}.', epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_list(commands: Any) -> None:
    parser = _command(
        commands, 'list', _list, 'models and their weights, a line each',
        "examples:\n  tinyvit-zoo list cct\n  tinyvit-zoo list '*c100*' --weights --json")
    parser.add_argument(
        'pattern', metavar='PATTERN', nargs='?', default='*',
        help='names to show, with the wildcards * ? [abc]; a bare word is a beginning: cct is cct*')
    parser.add_argument(
        '--weights', action=argparse.BooleanOptionalAction, help='only models with weights, or only those without')
    parser.add_argument('--json', action='store_true', help='the same and more, for programs')


def _add_info(commands: Any) -> None:
    parser = _command(
        commands, 'info', _info, 'all about one model and its weights', 'example:\n  tinyvit-zoo info cct_7_3x1')
    parser.add_argument('model', metavar='NAME[.TAG]', help='without TAG the default weights, those of pretrained=True')
    parser.add_argument('--json', action='store_true', help='the same and more, for programs')


def _add_predict(commands: Any) -> None:
    parser = _command(
        commands, 'predict', _predict, 'what a model sees in images',
        'examples:\n  tinyvit-zoo predict cct_7_3x1 cat.png\n'
        '  tinyvit-zoo predict cct_7_3x1.shi_c100_300e photos/ --topk 3 --json\n'
        '  tinyvit-zoo predict cct_2_3x2 photos/ --weights trained.safetensors --device cuda')
    parser.add_argument('model', metavar='NAME[.TAG]', help='without TAG the default weights, those of pretrained=True')
    parser.add_argument(
        'images', metavar='IMAGE', nargs='+', type=Path, help='a file, or a folder that is searched with all below it')
    parser.add_argument('--topk', type=_positive, default=5, metavar='K', help='classes to show (default: 5)')
    parser.add_argument('--batch-size', type=_positive, default=32, metavar='N', help='images at once (default: 32)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, mps, ... (default: cpu)')
    parser.add_argument(
        '--weights', type=Path, metavar='FILE',
        help='use this .safetensors, .pth or .zip file; size, normalisation and classes are those that the file '
             'says itself, else those of NAME.TAG')
    parser.add_argument('--json', action='store_true', help='the same and more, for programs')


def _add_recipes(commands: Any) -> None:
    parser = _command(commands, 'recipes', _recipes, 'how weights are made, a line each, or one recipe in full',
                      'example:\n  tinyvit-zoo recipes cct_7_3x1.c10')
    parser.add_argument('name', metavar='RECIPE', nargs='?')


def _add_train(commands: Any) -> None:
    from .train import add_train

    parser = _command(
        commands, 'train', _train, 'make the weights of a recipe, or fine-tune some on images of your own',
        'examples:\n  tinyvit-zoo train cct_2_3x2.digits\n'
        '  tinyvit-zoo train cct_7_3x1.c10 --data cifar10:PATH --output runs/a\n'
        '  tinyvit-zoo train cct_7_3x1.c10 --data cifar10:PATH --output runs/a --resume\n'
        '  tinyvit-zoo train --model cct_7_3x1.c10 --data folder:photos --val-fraction 0.1')
    add_train(parser)


def _add_count(commands: Any) -> None:
    from .count import add_count, run_count

    add_count(_command(
        commands, 'count', run_count, 'parameters, multiply-adds, activations and memory of models',
        "examples:\n  tinyvit-zoo count cct_7_3x1 --parts\n  tinyvit-zoo count 'sl_*' resnet18 --img-size 64 --json"))


def _add_compare(commands: Any) -> None:
    from .compare import add_compare, run_compare

    add_compare(_command(
        commands, 'compare', run_compare, 'models side by side: parameters, multiply-adds, accuracy, speed',
        'examples:\n  tinyvit-zoo compare cct_7_3x1 cvt_7_4 vit_lite_7_4 --plot compare.png\n'
        '  tinyvit-zoo compare resnet18 cct_7_3x1 sl_vit --dataset c10 --img-size 32 --device cuda'))


def _add_fractions(commands: Any) -> None:
    from .plot_fractions import add_fractions, run_fractions

    add_fractions(_command(
        commands, 'plot-fractions', run_fractions, 'accuracy over the share of the training images, from runs',
        'example:\n  tinyvit-zoo plot-fractions runs/quarter runs/half runs/whole'))


def _add_eval(commands: Any) -> None:
    from .eval import add_eval, run_eval

    add_eval(_command(
        commands, 'eval', run_eval, 'the accuracy of weights on images, and what their features are worth',
        'examples:\n  tinyvit-zoo eval cct_7_3x1 --data cifar10:PATH --per-class --confusion confusion.png\n'
        '  tinyvit-zoo eval runs/a runs/b ssl_vit.untrained --data digits --knn --probe\n'
        '  tinyvit-zoo eval --all --data c10=npz:FILE --data digits'))


def _add_publish(commands: Any) -> None:
    from ..publish.hub import add_publish, run_publish

    parser = _command(
        commands, 'publish', run_publish, 'put weights of ours on the Hugging Face Hub',
        'examples:\n  tinyvit-zoo publish cct_2_3x2.digits --namespace ORG --dry-run\n'
        '  tinyvit-zoo publish --all --namespace ORG')
    add_publish(parser)


def _add_pretrain(commands: Any) -> None:
    from .pretrain import add_pretrain

    parser = _command(
        commands, 'pretrain', _pretrain, 'make an encoder without labels, for `train --from` to begin with',
        'examples:\n  tinyvit-zoo pretrain mae_small --model ssl_vit --data folder:photos --output runs/a\n'
        '  tinyvit-zoo train --from runs/a --data folder:photos --output runs/b\n'
        '  tinyvit-zoo pretrain mae_vit_c10.c10_mae --data cifar10:PATH')
    add_pretrain(parser)


def _add_export(commands: Any) -> None:
    from .export import add_export, run_export

    add_export(_command(
        commands, 'export', run_export, 'a model as ONNX or as a program of torch.export, checked',
        'examples:\n  tinyvit-zoo export cct_7_3x1 cct.onnx\n'
        '  tinyvit-zoo export runs/a small.onnx --int8 --data c10=npz:FILE\n'
        "  tinyvit-zoo export --all 'cct*'"))


def _add_analyze(commands: Any) -> None:
    from .analyze import add_analyze, run_analyze

    add_analyze(_command(
        commands, 'analyze', run_analyze, 'attention, similarity of layers, maps over images: pictures and numbers',
        'examples:\n  tinyvit-zoo analyze attention runs/a mae_vit_c10=b.safetensors --data cifar10:PATH\n'
        '  tinyvit-zoo analyze maps cct_7_3x1 --files photos/\n  tinyvit-zoo analyze support sl_'))


def _add_autoload(commands: Any) -> None:
    from ..autoload import LIMITS

    parser = _command(
        commands, 'autoload', _autoload, "have timm know these models without 'import tinyvit_zoo'",
        f'example:\n  tinyvit-zoo autoload on\n\n{LIMITS}')
    parser.add_argument('action', choices=['on', 'off', 'status'])


def _recipes(args: argparse.Namespace) -> str:
    from .train import recipes_text

    return recipes_text(args.name)


def _train(args: argparse.Namespace) -> str:
    from .train import run_train

    return run_train(args, args.unknown)


def _pretrain(args: argparse.Namespace) -> str:
    from .pretrain import run_pretrain

    return run_pretrain(args, args.unknown)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1 up')
    return int(text)


def _list(args: argparse.Namespace) -> str:
    records = [_record(name) for name in _matching(args.pattern, args.weights)]
    if args.json:
        return json.dumps([{k: v for k, v in record.items() if k != 'label_names'} for record in records], indent=2)
    head = ('name', 'parameters', 'input', 'data set', 'published', 'measured', 'from')
    models, weights = len({r['architecture'] for r in records}), sum(r['weights'] is not None for r in records)
    return (f'{table([head, *map(_list_row, records)], left=(0, 2, 3, 6))}\n\n'
            f'Models: {models}, weights: {weights}; the first weights of a model are its default.\n'
            f'Top-1 accuracy in %: what the paper says, and what we measured (-: {_NOT_MEASURED}).')


def _matching(pattern: str, with_weights: bool | None) -> list[str]:
    """`NAME.TAG` of all that match, `NAME.untrained` where there are no weights."""
    from timm.models import get_arch_pretrained_cfgs

    from ..models import list_models

    pattern = pattern if any(c in pattern for c in '*?[') else f'{pattern}*'
    cfgs = [cfg for model in list_models() for cfg in get_arch_pretrained_cfgs(model).values()
            if with_weights in (None, bool(cfg.has_weights))]
    found = [f'{cfg.architecture}.{cfg.tag}' for cfg in cfgs
             if fnmatchcase(cfg.architecture, pattern) or fnmatchcase(f'{cfg.architecture}.{cfg.tag}', pattern)]
    if not found:
        kind = {None: '', True: ' with weights', False: ' without weights'}[with_weights]
        known = dict.fromkeys(name for cfg in cfgs for name in (cfg.architecture.split('_')[0], cfg.architecture))
        raise ZooError(f'No model{kind} matches {pattern!r}.{nearest(pattern.strip("*"), known)} '
                       f'`tinyvit-zoo list` shows all.')
    return found


def _list_row(record: dict[str, Any]) -> tuple[str, ...]:
    weights = record['weights']
    name = record['name'] if weights else record['architecture']
    size = f'{record["parameters"] / 1e6:.2f} M', 'x'.join(map(str, record['input_size']))
    if not weights:
        return name, *size, '-', '-', '-', '-'
    tops = [f'{figure["top1"]:.2f}' if figure else '-' for figure in (weights['published'], weights['measured'])]
    return name, *size, weights['dataset'], *tops, weights['kind']


def _record(name: str) -> dict[str, Any]:
    """All there is to say of `NAME.TAG`, as `--json` shows it."""
    import timm
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

    from ..weights import weight_of

    cfg = get_pretrained_cfg(name)
    tags = [other.tag for other in get_arch_pretrained_cfgs(cfg.architecture).values()]
    weight = weight_of(cfg)
    return {
        'name': name, 'architecture': cfg.architecture, 'tag': cfg.tag, 'default_tag': tags[0], 'tags': tags,
        'parameters': sum(p.numel() for p in timm.create_model(name, device='meta').parameters()),
        'input_size': cfg.input_size, 'mean': cfg.mean, 'std': cfg.std, 'crop_pct': cfg.crop_pct,
        'interpolation': cfg.interpolation, 'num_classes': cfg.num_classes, 'label_names': _label_names(cfg.to_dict()),
        'paper': f'{cfg.paper_name} ({cfg.paper_ids})', 'licence': cfg.license,
        'weights': weight and {
            'kind': 'package' if weight.file else 'Hub' if weight.hf_hub_id else 'URL', 'source': weight.source,
            'origin': weight.origin, 'dataset': weight.data.title, 'recipe': weight.recipe,
            'published': weight.published, 'measured': weight.measured, 'trained': weight.trained,
            'sha256': weight.sha256, 'note': weight.note},
    }


def _label_names(cfg: dict[str, Any]) -> list[str]:
    """A name for each class, as the cfg or timm's ImageNet lists have it; empty where neither does."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(cfg)
    return list(cfg.get('label_names') or (ImageNetInfo(subset).label_descriptions() if subset else ()))


def _resolve(name: str) -> str:
    """`NAME.TAG`, with the default tag where none is given; ZooError that names the nearest where either is unknown."""
    from timm.models import get_pretrained_cfg

    from ..models import check_name, check_tag

    check_name(name)
    architecture, _, tag = name.partition('.')
    if tag:
        check_tag(architecture, tag)
    return f'{architecture}.{tag or get_pretrained_cfg(architecture).tag}'


def _info(args: argparse.Namespace) -> str:
    record = _record(_resolve(args.model))
    if args.json:
        return json.dumps(record, indent=2)
    lines = {**_model_lines(record), **_weight_lines(record['weights'])}
    width = max(map(len, lines)) + 2
    return '\n'.join(
        textwrap.fill(text, 120, initial_indent=f'{title:{width}}', subsequent_indent=' ' * width,
                      break_long_words=False, break_on_hyphens=False)
        for title, text in lines.items() if text)


def _model_lines(record: dict[str, Any]) -> dict[str, str]:
    names, count = record['label_names'], record['num_classes']
    first = f': {"; ".join(names[:5])}{"; ..." if count > 5 else ""}' if names else ''
    return {
        'architecture': record['architecture'],
        'tag': record['tag'] + (' (the default)' if record['tag'] == record['default_tag'] else ''),
        'other tags': ', '.join(tag for tag in record['tags'] if tag != record['tag']),
        'parameters': f'{record["parameters"]:,}',
        'input': ' x '.join(map(str, record['input_size'])),
        'mean': ', '.join(f'{value:g}' for value in record['mean']),
        'std': ', '.join(f'{value:g}' for value in record['std']),
        'resize': f'{record["interpolation"]}, crop_pct {record["crop_pct"]:g}',
        'classes': f'{count}{first}',
        'paper': record['paper'],
        'licence': record['licence'],
    }


def _weight_lines(weights: dict[str, Any] | None) -> dict[str, str]:
    if not weights:
        return {'weights': 'none yet'}
    published, measured, trained = weights['published'], weights['measured'], weights['trained']
    return {
        'weights': f'{weights["kind"]}: {weights["source"]}',
        'origin': weights['origin'],
        'trained on': weights['dataset'],
        'recipe': weights['recipe'],
        'published': f'{published["top1"]:.2f} % top-1 ({published["source"]})' if published else 'no figure',
        'measured': f'{measured["top1"]:.2f} % top-1 on {measured["on"]}, {measured["date"]}: {measured["command"]}'
                    if measured else _NOT_MEASURED,
        'made by': f'{trained["command"]}; {trained["minutes"]:g} minutes on {trained["machine"]}, {trained["date"]}'
                   if trained else '',
        'note': weights['note'],
    }


def _predict(args: argparse.Namespace) -> str:
    import timm
    from timm.models import get_pretrained_cfg

    name = _resolve(args.model)
    cfg = get_pretrained_cfg(name)
    if not cfg.num_classes and not args.weights:
        raise ZooError(f'{name} has no classes to predict: it gives features, for another training to build on.')
    from ..measure.prediction import check_device, classify, image_files, opened

    check_device(args.device)
    paths = image_files(args.images)
    for path in paths:
        with opened(path):  # reads the header: what is no image is found before any weights are fetched
            pass
    overlay = {'file': str(args.weights)} if args.weights else None
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).to(args.device).eval()
    if not model.num_classes:
        raise ZooError(f'{args.weights} does not say its classes, nor does {name}: expected a file of our training, or '
                       f'a NAME.TAG with classes.')
    labels = _label_names(model.pretrained_cfg)
    if not labels or len(labels) != model.num_classes:
        labels = [str(i) for i in range(model.num_classes)]
    results = list(zip(paths, classify(model, labels, paths, args.topk, args.batch_size), strict=True))
    if args.json:
        images = [{'image': str(path), 'predictions': found} for path, found in results]
        return json.dumps({'model': name, 'weights': args.weights and str(args.weights), 'images': images}, indent=2)
    rows = [(str(path) if i == 0 else '', f'{100 * guess["probability"]:.2f} %', guess['label'])
            for path, found in results for i, guess in enumerate(found)]
    return table([('image', 'probability', 'class'), *rows], left=(0, 2))


def _autoload(args: argparse.Namespace) -> str:
    from .. import autoload

    if args.action == 'on':
        return f'autoload is on: {autoload.switch_on()}'
    if args.action == 'off':
        return 'autoload is off' if autoload.switch_off() else 'autoload was off already'
    return str(autoload.status())
