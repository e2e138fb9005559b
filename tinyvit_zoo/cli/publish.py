"""`tinyvit-zoo publish`: weights of ours to the Hugging Face Hub."""
import argparse
from pathlib import Path

from ..errors import ZooError
from ..publish.hub import publish, shipped
from ..runtime.files import user_path
from ..runtime.text import show

NAME = 'publish'
SUMMARY = 'push weights of the package to the Hugging Face Hub'
EXAMPLES = '''
tinyvit-zoo publish cct_2_3x2.digits --namespace ORG --dry-run
tinyvit-zoo publish --all --namespace ORG --data cifar10:PATH cifar100:PATH
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', metavar='NAME.TAG', nargs='?', help='weights that ship with the package')
    parser.add_argument('--all', action='store_true', help='publish all weights that ship with the package')
    parser.add_argument('--namespace', required=True, metavar='ORG', help='organization or user on the Hub')
    parser.add_argument('--data', nargs='+', metavar='[KEY=]SOURCE', default=[], help='training data of the weights, '
                        'to calibrate and measure their 8-bit ONNX file (digits are built in)')
    parser.add_argument('--dry-run', action='store_true', help='write to OUTPUT/ORG/NAME.TAG instead of pushing')
    parser.add_argument('--output', type=user_path, metavar='DIR', help='for --dry-run (default: hub)')


def run(args: argparse.Namespace) -> str:
    if bool(args.name) == args.all:
        raise ZooError('Give either NAME.TAG or --all.')
    if args.output and not args.dry_run:
        raise ZooError('--output is for --dry-run: give both or neither.')
    output = (args.output or Path('hub')) if args.dry_run else None
    for line in publish(shipped(args.name), args.namespace, output, args.data):
        show(line)
    return ''
