"""`tinyvit-zoo autoload`: register the models with timm at every start of Python."""
import argparse

from .. import autoload

NAME = 'autoload'
SUMMARY = "register the models with every `import timm`, without 'import tinyvit_zoo'"
EXAMPLES = 'tinyvit-zoo autoload on'
LIMITS = """\
limits:
  - It works in the environment it is switched on in and in no other, from the next start of Python.
  - `pip uninstall tinyvit-zoo` removes it. So do an upgrade and a reinstall: switch it on again after them.
  - Python reads no start-up files with -S (-I alone is fine), in frozen applications (PyInstaller and the like), in zip
    applications that bring their own packages, nor from directories that are merely on PYTHONPATH (pip --target). For a
    `pip install --user` it reads none with -s, -I or PYTHONNOUSERSITE.
  - Python 3.18 will ignore import lines in .pth files (PEP 829), which this relies on: `on` refuses there.
  - Every process that imports timm.models then imports tinyvit_zoo as well. Should that fail, it warns once and timm
    goes on without our models.
Code that can say `import tinyvit_zoo` needs none of this.
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
