"""Write files whole or not at all; draw pictures with matplotlib, without touching the state of pyplot."""
import errno
import glob
import logging
import os
import platform
import shutil
import textwrap
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from ..errors import ZooError

PARTIAL = '.partial-'    # begins the name of a file that is being written
_PARTIAL_HERE, _ASIDE = f'{PARTIAL}{platform.node()}-', '~'     # then process, thread, name
_open: set[str] = set()     # names of partial files that threads of this process write
KINDS = ('.png', '.pdf', '.svg')
_FONTS = (      # for letters that matplotlib's own has not: of Linux, macOS, and Windows
    'Noto Sans CJK JP', 'Noto Sans CJK SC', 'WenQuanYi Zen Hei', 'Droid Sans Fallback', 'Arial Unicode MS',
    'Hiragino Sans', 'Microsoft YaHei', 'Malgun Gothic', 'Noto Sans Devanagari', 'Noto Sans Thai', 'Noto Sans Arabic')
_logger = logging.getLogger(__name__)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path`, of its ending, renamed to it at the end, and removed after an error.

    A folder is written in the place of a folder. What processes that have been killed left of `path` is removed.
    """
    check_path(path)
    if not path.name or (path.exists() and not (path.is_file() or path.is_dir())):
        raise ZooError(f'{path} is no name of a file, or a device or pipe: choose another place.')
    partial = path.with_name(f'{_PARTIAL_HERE}{os.getpid()}.{threading.get_native_id()}-{path.name}')
    aside = partial.with_name(f'{partial.name}{_ASIDE}')
    _open.add(partial.name)
    try:
        with naming_unwritable(path):
            for each in _left_of(path):
                _remove(each)
            yield partial
            for each in (*partial.rglob('*'), partial):
                _sync(each)
            if partial.is_dir() and path.is_dir():
                os.replace(path, aside)
            os.replace(partial, path)
            _sync(path.parent)  # or a power cut may undo the renaming, and keep what is written after it
    finally:
        with suppress(OSError):
            _remove(partial)
            _remove(aside)
        _open.discard(partial.name)


def _left_of(path: Path) -> Iterator[Path]:
    """Yield what processes of this machine that have ended began to write in the place of `path`."""
    for each in path.parent.glob(f'{glob.escape(_PARTIAL_HERE)}*-{glob.escape(path.name)}*'):
        number, _, name = each.name.removeprefix(_PARTIAL_HERE).partition('-')
        process = number.partition('.')[0]
        if name.removesuffix(_ASIDE) == path.name and process.isdecimal() and _has_ended(int(process)) \
                and each.name.removesuffix(_ASIDE) not in _open:
            yield each


def _has_ended(process: int) -> bool:
    if os.name == 'nt':     # os.kill would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return process == os.getpid()   # an earlier process with the same number


@contextmanager
def naming_unwritable(path: Path) -> Iterator[None]:
    """Turn an OSError, which need not say of which file it is, into a ZooError."""
    try:
        yield
    except OSError as e:
        copies = e.args[0] if isinstance(e, shutil.Error) else ''   # of a folder: shutil gives a reason for each file
        reason = copies[0][-1] if isinstance(copies, list) else e.strerror or e
        raise ZooError(f'{path} cannot be written ({reason}): {_remedy(e)}.') from e


def _remedy(error: OSError) -> str:
    if 'temporary directory' in str(error):     # as the module tempfile says it
        return 'set TMPDIR to a folder that can be written'
    first = {errno.ENOSPC: 'free disk space, or ', errno.EDQUOT: 'free disk space, or ', errno.EISDIR: 'remove it, or '}
    # shutil's, of a folder, has no number
    number = error.errno or next((number for number in first if os.strerror(number) in str(error)), 0)
    return f'{first.get(number, "")}choose another place'


def told(error: OSError) -> str:
    """Return which file an OSError is of, why, and what to do."""
    reason = error.strerror or str(error)
    if 'temporary directory' in reason:
        return f'{reason}: {_remedy(error)}.'
    if not os.path.isabs(str(error.filename or '')):
        try:
            os.getcwd()
        except OSError:
            return 'The current folder has been removed: change to another one.'
    return f'{str(error.filename or "A file")[:300]} cannot be read or written ({reason}): {_remedy(error)}.'


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path whose `~`, if it begins with one, is the home directory, as for the shell.

    ZooError for what can be no name of a file.
    """
    try:
        possible = b'\0' not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ZooError(f'{str(path)[:80]!r} can be no name of a file: choose another one.')
    expanded = os.path.expanduser(path)
    if expanded[:2] in ('~', '~/'):
        raise ZooError(f'There is no home directory for {path}: give a path without ~.')
    found = Path(expanded)      # of './~' or '~nobody', which is not to be expanded again
    return found.absolute() if str(found).startswith('~') else found


def check_path(path: Path) -> None:
    """Raise ZooError for a name that not every library can write to, or show."""
    try:
        os.fsencode(path).decode('utf-8')
    except UnicodeError as e:
        raise ZooError(f'{path} is not valid UTF-8: choose another name.') from e
    if '\0' in str(path):
        raise ZooError(f'{path} has a null byte in its name: choose another name.')


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, then rename it."""
    with written_whole(path) as partial:
        partial.write_bytes(content)


def append(path: Path, text: str) -> None:
    """Append a line to a file; what UTF-8 cannot encode, and file names may hold, is escaped."""
    if path.exists() and not path.is_file():    # a pipe would wait for a reader
        raise ZooError(f'{path} is no regular file: remove it, or choose another place.')
    with naming_unwritable(path), open(path, 'a', encoding='utf-8', errors='backslashreplace') as file:
        file.write(f'{text}\n')


def remove_partial(folder: Path) -> None:
    """Remove what a killed process has begun to write in a folder, or those in it, that nobody else writes to now."""
    for path in (*folder.glob(f'{PARTIAL}*'), *folder.glob(f'*/{PARTIAL}*')):
        with suppress(OSError):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, or the names in a folder, where the system can do that."""
    folder, windows = path.is_dir(), os.name == 'nt'
    with suppress(OSError) if folder else nullcontext():
        handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_picture(option: str, path: Path) -> None:
    """Raise ZooError if the picture that `option` asks for could not be written."""
    if path.suffix not in KINDS:
        raise ZooError(f'{option} is {path}, expected a name that ends in {" or ".join(KINDS)}.')
    if not path.absolute().parent.is_dir():
        raise ZooError(f'{option} is {path}, but there is no folder {path.parent}: create it or choose another.')
    require_matplotlib()


def require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise ZooError("Pictures need matplotlib: pip install 'tinyvit-zoo[analysis]'.") from e
    except Exception as e:      # its settings are wrong
        raise ZooError(f'matplotlib cannot be used ({" ".join(str(e).split())[:200]}): check MPLBACKEND and '
                       f'matplotlibrc.') from e


def new_figure(rows: int, columns: int, size: tuple[float, float], title: str = '', **kwargs: Any) -> tuple[Any, Any]:
    """Make a figure of `size` inches with a title, in lines that fit; return it and its axes [rows, columns]."""
    require_matplotlib()
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout='constrained')
    if title:
        figure.suptitle(textwrap.fill(title.replace(' %', '\xa0%'), int(12 * size[0])), fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def write_picture(figure: Any, path: Path, dpi: int = 130, **kwargs: Any) -> None:
    """Write `path` whole, in the format of its ending; `kwargs` go to `savefig`."""
    from matplotlib.font_manager import fontManager
    from matplotlib.text import Text
    installed = {font.name for font in fontManager.ttflist}
    for text in figure.findobj(Text):
        text.set_parse_math('$' not in text.get_text())     # names of files and classes are no formulas
        if not text.get_text().isascii():
            text.set_fontfamily([text.get_fontfamily()[0], *(name for name in _FONTS if name in installed)])
    with written_whole(path) as partial, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')     # for each file
        figure.savefig(partial, dpi=dpi, **kwargs)
    if any('missing from font' in str(each.message) for each in caught):
        _logger.warning('%s shows boxes in place of some letters: install a font that has them, such as Noto Sans CJK.',
                        path)


def display_pictures(paths: Sequence[Path]) -> None:
    """Show .png files where a notebook runs."""
    try:
        from IPython import display, get_ipython
    except ImportError:
        return
    if get_ipython() is not None:
        for path in paths:
            display.display(display.Image(str(path)))
