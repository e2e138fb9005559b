"""`tinyvit-zoo autoload`: register the models with timm at every start of Python."""
from __future__ import annotations

import argparse

from .. import autoload

NAME = 'autoload'
SUMMARY = "register the models with every `import timm`, without 'import tinyvit_zoo'"
EXAMPLES = 'tinyvit-zoo autoload on'


def add(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f'{parser.epilog}\n\n{autoload.LIMITS}'
    parser.add_argument('action', choices=['on', 'off', 'status'])


def run(args: argparse.Namespace) -> str:
    if args.action == 'on':
        return f'autoload is on: {autoload.switch_on()}'
    if args.action == 'off':
        return 'autoload is off' if autoload.switch_off() else 'autoload was off already'
    return str(autoload.status())
