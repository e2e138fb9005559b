"""Register the zoo's models with timm at every start of Python: `tinyvit-zoo autoload on|off|status`.

timm discovers no plugins. `on` puts a start-up file, `tinyvit_zoo_autoload.pth`, into the distribution's site-packages,
and its name into RECORD, so that `pip uninstall` removes it. Its line executes `_startup.py`. Left behind it does
nothing; a package that fails to import costs one warning, never an `import timm`.

CPython ignores import lines in `.pth` files from 3.18 on (PEP 829): there `on` refuses. The `.start` files that replace
them would import this package, and torch, at every start.
"""
import base64
import csv
import hashlib
import os
import shutil
import site
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .errors import ZooError
from .runtime.files import written_whole

DISTRIBUTION = 'tinyvit-zoo'
NAME = 'tinyvit_zoo_autoload'  # the hook's __name__, by which it knows that it is not imported
FILE = f'{NAME}.pth'
HOOK = '_startup.py'
IGNORED_FROM = (3, 18)  # PEP 829, and "pending removal" in CPython's documentation


@dataclass(frozen=True)
class Status:
    """Whether autoload is on; as a string, the line to print."""
    on: bool
    path: Path   # of the start-up file, whether it exists or not
    ours: bool   # it exists and executes the hook of this installation

    def __str__(self) -> str:
        if not self.on:
            return f'autoload is off: there is no {self.path}'
        if not self.ours:
            return (f'autoload is on for another installation: {self.path} points elsewhere; `tinyvit-zoo autoload on` '
                    f'rewrites it, `off` removes it')
        return f'autoload is on for this installation: {self.path}'


@dataclass(frozen=True)
class Installation:
    """The distribution's site-packages, the list of its files, the hook to execute."""
    folder: Path
    record: Path
    hook: Path

    @property
    def file(self) -> Path:
        return self.folder / FILE


def switch_on() -> Path:
    """Write or renew the start-up file and return its path; switching on twice changes nothing."""
    if sys.version_info >= IGNORED_FROM:
        raise ZooError(f'autoload: this is Python {sys.version_info[0]}.{sys.version_info[1]}, which ignores import '
                       'lines in .pth files; expected 3.17 or older; put `import tinyvit_zoo` into your code')
    here = find_installation()
    content = start_up_file(here.hook)
    with explained(here):
        # RECORD first: a kill in between leaves a name without a file there, which pip skips
        replace(here.record, with_line(here.record.read_bytes(), content))
        replace(here.file, content)
    return here.file


def switch_off() -> bool:
    """Remove the start-up file and its line in RECORD; return whether there was a file."""
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
    """Find the installed distribution; a source tree's egg-info has no RECORD and does not count."""
    for installed in metadata.distributions(name=DISTRIBUTION):
        try:
            records = [file for file in installed.files or () if file.match('*.dist-info/RECORD')]
        except (ValueError, csv.Error) as e:    # no text, or no table
            raise ZooError(f'autoload: the RECORD of {DISTRIBUTION} is damaged ({" ".join(str(e).split())}); expected '
                           f'a list of its files; reinstall it (`pip install --force-reinstall`)') from e
        if not records:
            continue
        folder = Path(str(installed.locate_file(''))).resolve()
        known = [*site.getsitepackages(), site.getusersitepackages()]   # on sys.path alone, .pth files are not read
        if folder not in [Path(one).resolve() for one in known]:
            raise ZooError(f'autoload: {DISTRIBUTION} is installed in {folder}, where Python reads no start-up files; '
                           f'expected {known[0]}; install it there, or put `import tinyvit_zoo` into your code')
        hook = folder / 'tinyvit_zoo' / HOOK
        if not hook.exists():  # an editable install: the package stays where it is developed
            hook = Path(__file__).resolve().with_name(HOOK)
        return Installation(folder, folder / str(records[0]), hook)
    raise ZooError(f'autoload: no installed {DISTRIBUTION} with a RECORD of its files (is this a source tree?); '
                   'expected one in site-packages; install it (`pip install .` or `pip install -e .`), or put '
                   '`import tinyvit_zoo` into your code')


def start_up_file(hook: Path) -> bytes:
    """Return a comment and one line, which does nothing if the hook is gone or out of reach.

    It imports only loaded modules: a tenth of a millisecond; importlib.machinery takes twenty times as long.
    The path is bytes: Pythons decode these files in different ways, and a C locale cannot encode every string.
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
    """Add our line at the top: removing it restores the file, with or without a final newline."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
    end = '\r\n' if b'\r\n' in record else '\n'
    return f'{FILE},sha256={digest},{len(content)}{end}'.encode() + without_line(record)


def without_line(record: bytes) -> bytes:
    return b''.join(line for line in record.splitlines(keepends=True) if not line.startswith(f'{FILE},'.encode()))


def replace(path: Path, content: bytes) -> None:
    """Write the file with the permissions of the one it replaces, unless it has this content already."""
    if path.exists() and path.read_bytes() == content:
        return
    with written_whole(path) as partial:
        partial.write_bytes(content)
        if path.exists():
            shutil.copymode(path, partial)


@contextmanager
def explained(here: Installation) -> Iterator[None]:
    try:
        yield
    except (OSError, ZooError) as error:
        reason = getattr(error.__cause__ or error, 'strerror', None) or error
        raise ZooError(f'autoload: {reason}; expected to read and write {here.file} and {here.record}; run it as the '
                       'owner of this environment, or put `import tinyvit_zoo` into your code') from error
