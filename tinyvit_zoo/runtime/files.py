"""Write files whole or not at all; draw pictures with matplotlib, without touching the state of pyplot."""
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ZooError

KINDS = ('.png', '.pdf', '.svg')


@contextmanager
def written_whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside `path`, of its ending, renamed to it at the end, and removed after an error."""
    # shared: several processes may write `path` at once
    partial = path.with_name(f'.partial-{os.getpid() if shared else ""}{path.name}')
    try:
        yield partial
        if partial.is_file():
            with open(partial, 'rb+') as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        raise ZooError(f'{path} cannot be written ({e.strerror or e}): make room, or choose another place.') from e
    finally:
        with suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, shared: bool = False) -> None:
    """Write `content` beside `path`, then rename it."""
    with written_whole(path, shared) as partial:
        partial.write_bytes(content)


def check_picture(option: str, path: Path) -> None:
    """Raise ZooError if the picture that `option` asks for could not be written."""
    if path.suffix not in KINDS:
        raise ZooError(f'{option} is {path}, expected a name that ends in {" or ".join(KINDS)}.')
    if not path.absolute().parent.is_dir():
        raise ZooError(f'{option} is {path}, but there is no folder {path.parent}: make it, or choose another.')
    require_matplotlib()


def require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise ZooError("Pictures need matplotlib: pip install 'tinyvit-zoo[analysis]'.") from e


def new_figure(rows: int, columns: int, size: tuple[float, float], **kwargs: Any) -> tuple[Any, Any]:
    """Make a figure of `size` inches; return it and its axes [rows, columns]."""
    require_matplotlib()
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def write_picture(figure: Any, path: Path, dpi: int = 130, **kwargs: Any) -> None:
    """Write `path` whole, in the format of its ending; `kwargs` go to `savefig`."""
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=dpi, **kwargs)
