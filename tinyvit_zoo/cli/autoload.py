"""`tinyvit-zoo autoload`: register the models with timm at every start of Python."""
import argparse

from .. import autoload

NAME = 'autoload'
SUMMARY = 'let `import timm` register the models, without `import tinyvit_zoo`'
EXAMPLES = 'tinyvit-zoo autoload on'
LIMITS = """\
limits:
  - It works in this environment only, from the next start of Python.
  - Uninstalling, upgrading or reinstalling tinyvit-zoo removes it: switch it on again.
  - Python reads no start-up files with -S, in frozen applications (PyInstaller), in zip applications that bring their
    own packages, nor from directories that are only on PYTHONPATH (pip --target). After `pip install --user` it reads
    none with -s, -I or PYTHONNOUSERSITE.
  - Python 3.18 will ignore import lines in .pth files (PEP 829), which this needs: `on` refuses there.
  - Every process that imports timm.models also imports tinyvit_zoo. If that fails, it warns once, and timm works
    without our models.
Code that can `import tinyvit_zoo` does not need this.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f'{parser.epilog}\n\n{LIMITS}'
    parser.add_argument('action', choices=['on', 'off', 'status'])


def run(args: argparse.Namespace) -> str:
    if args.action == 'on':
        return f'autoload is on: {autoload.switch_on()}'
    if args.action == 'off':
        return 'autoload is off' if autoload.switch_off() else 'autoload was off already'
    return str(autoload.status())
