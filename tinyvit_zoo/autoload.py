"""`tinyvit-zoo autoload on|off|status`: timm knows the zoo's models in processes that never name the zoo.

timm has no plugin discovery, so `import tinyvit_zoo` is what registers our models. Where that line cannot be written,
`on` puts one start-up file, `tinyvit_zoo_autoload.pth`, into the site-packages directory this distribution is installed
in, and its name into the distribution's RECORD, so that `pip uninstall` takes it along. Its one line executes
`_startup.py`, which imports nothing until timm.models has been imported, and tinyvit_zoo then.

It is off unless switched on. Left behind without the package it does nothing; a package that fails to import costs one
warning, never an `import timm`. Its limits are in `LIMITS`, which is also the command's help.

PEP 829 (Python 3.15) replaces import lines in `.pth` files by `.start` files; CPython ignores the lines from 3.18 on,
where `on` refuses. The successor is not written: it can only name a function of an importable module, and importing one
of this package is importing torch, at every start of the interpreter; and up to 3.17 the `.pth` file does the work.
"""
from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import site
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tinyvit_zoo.errors import ZooError

__all__ = ['LIMITS', 'Status', 'status', 'switch_off', 'switch_on']

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

DISTRIBUTION = 'tinyvit-zoo'
NAME = 'tinyvit_zoo_autoload'  # under which the hook is executed, and knows by it that it is not imported
FILE = f'{NAME}.pth'
HOOK = '_startup.py'
IGNORED_FROM = (3, 18)  # PEP 829, and "pending removal" in CPython's documentation


@dataclass(frozen=True)
class Status:
    """What `status` found; as a string it is the line to print."""

    on: bool
    path: Path   # of the start-up file, whether it exists or not
    ours: bool   # it exists and executes the hook of this installation

    def __str__(self) -> str:
        if not self.on:
            return f'autoload is off: there is no {self.path}'
        if not self.ours:
            return (f'autoload is on, but not for this installation: {self.path} points elsewhere; '
                    '`tinyvit-zoo autoload on` rewrites it, `off` removes it')
        return f'autoload is on for this installation: {self.path}'


@dataclass(frozen=True)
class Installation:
    """Where the distribution lies: its site-packages, the list of its files, the hook to execute."""

    folder: Path
    record: Path
    hook: Path

    @property
    def file(self) -> Path:
        return self.folder / FILE


def switch_on() -> Path:
    """Writes the start-up file, or renews it, and returns its path; switching on twice changes nothing."""
    if sys.version_info >= IGNORED_FROM:
        raise ZooError(f'autoload: this is Python {sys.version_info[0]}.{sys.version_info[1]}, which ignores import '
                       'lines in .pth files; expected 3.17 or older; put `import tinyvit_zoo` into your code')
    here = find_installation()
    content = start_up_file(here.hook)
    with explained(here):
        # RECORD first: killed in between, it names a file that is not there, and pip passes over those.
        replace(here.record, with_line(here.record.read_bytes(), content))
        replace(here.file, content)
    return here.file


def switch_off() -> bool:
    """Removes the start-up file and its line in RECORD; says whether there was a file."""
    here = find_installation()
    with explained(here):
        was_on = here.file.exists()
        here.file.unlink(missing_ok=True)
        replace(here.record, without_line(here.record.read_bytes()))
    return was_on


def status() -> Status:
    here = find_installation()
    with explained(here):
        on = here.file.exists()
        text = here.file.read_text(encoding='utf-8', errors='replace') if on else ''
    return Status(on, here.file, ours=literal(here.hook) in text)


def find_installation() -> Installation:
    """The installed distribution; a source tree's egg-info is none, for it has no RECORD."""
    for found in metadata.distributions(name=DISTRIBUTION):
        records = [file for file in found.files or () if file.name == 'RECORD' and file.parent.suffix == '.dist-info']
        if not records:
            continue
        folder = Path(str(found.locate_file(''))).resolve()
        check_start_up_files_are_read(folder)
        hook = folder / 'tinyvit_zoo' / HOOK
        if not hook.exists():  # an editable install: the package stays where it is developed
            hook = Path(__file__).resolve().with_name(HOOK)
        return Installation(folder, folder / str(records[0]), hook)
    raise ZooError(f'autoload: no installed {DISTRIBUTION} with a RECORD of its files found (is this a source tree?); '
                   'expected one in site-packages; install it (`pip install .` or `pip install -e .`), or put '
                   '`import tinyvit_zoo` into your code')


def check_start_up_files_are_read(folder: Path) -> None:
    """On sys.path is not enough: Python looks for `.pth` files in its site directories only."""
    known = [*site.getsitepackages(), site.getusersitepackages()]
    if folder not in [Path(one).resolve() for one in known]:
        raise ZooError(f'autoload: {DISTRIBUTION} is installed in {folder}, where Python reads no start-up files; '
                       f'expected {known[0]}; install it there with pip, or put `import tinyvit_zoo` into your code')


def start_up_file(hook: Path) -> bytes:
    """A comment and one line, which does nothing where the hook is gone or out of reach.

    It imports what is loaded already and takes the hook's compiled file, so that it costs a tenth of a millisecond (in
    a venv, Python executes it twice). importlib.machinery, the public name of that loader, would cost twenty times as
    much. The path is bytes: Pythons decode these files in different ways, and a C locale cannot encode every string.
    """
    return (
        '# Registers the models of tinyvit_zoo when timm.models is imported. '
        'To remove: `tinyvit-zoo autoload off`, or delete this file.\n'
        f'import os, _frozen_importlib_external as files; name = {NAME!r}; hook = os.fsdecode({literal(hook)}); '
        "os.access(hook, os.R_OK) and exec(files.SourceFileLoader(name, hook).get_code(name), {'__name__': name})\n"
    ).encode('ascii')


def literal(path: Path) -> str:
    return repr(os.fsencode(path))


def with_line(record: bytes, content: bytes) -> bytes:
    """Our line goes to the top: there it comes off without a trace, however the last line ends."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
    end = '\r\n' if b'\r\n' in record else '\n'
    return f'{FILE},sha256={digest},{len(content)}{end}'.encode() + without_line(record)


def without_line(record: bytes) -> bytes:
    return b''.join(line for line in record.splitlines(keepends=True) if not line.startswith(f'{FILE},'.encode()))


def replace(path: Path, content: bytes) -> None:
    """Beside and renamed, with the permissions of the file it replaces; nothing where the content is there already."""
    if path.exists() and path.read_bytes() == content:
        return
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        beside.write_bytes(content)
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


@contextlib.contextmanager
def explained(here: Installation) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ZooError(f'autoload: {error.filename or here.folder}: {error.strerror or error}; expected to read and '
                       f'write {here.file} and {here.record}; run it as the owner of this environment, or put '
                       '`import tinyvit_zoo` into your code') from error
