"""The hook of `tinyvit-zoo autoload on`: import tinyvit_zoo once timm.models is imported.

Executed by its path at every start of Python (see autoload.py): it imports no torch, hence not its own package, and
only modules that every Python has loaded. Nothing in it may raise into the interpreter or into `import timm`.
"""
import sys
from _thread import get_ident

TYPE_CHECKING = False  # type checkers go by the name; importing typing would cost more than all the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# timm is followed too: it imports timm.models halfway down, and tinyvit_zoo needs both of them whole.
FOLLOWED = ('timm', 'timm.models')
PACKAGE = 'tinyvit_zoo'


class TimmFinder:
    """Let the other finders find timm and timm.models, and follow how those two are executed."""
    # Stays in sys.meta_path: before 3.14, a thread that walks the list during a removal skips a finder.

    def __init__(self) -> None:
        self.asking: set[int] = set()    # threads that ask the other finders: for them this one finds nothing
        self.running: list[str] = []     # which of the two are being executed, the outer one first

    def find_spec(self, name: str, path: 'Sequence[str] | None' = None,
                  target: 'ModuleType | None' = None) -> 'ModuleSpec | None':
        if name not in FOLLOWED or get_ident() in self.asking:
            return None
        self.asking.add(get_ident())
        try:
            for finder in list(sys.meta_path):
                find = getattr(finder, 'find_spec', None)  # before Python 3.12 there are finders without one
                spec: ModuleSpec | None = find(name, path, target) if find else None
                if spec is not None:
                    if hasattr(spec.loader, 'exec_module'):  # FollowedLoader is a Loader by its methods
                        spec.loader = FollowedLoader(spec, self.running)  # type: ignore[assignment]
                    return spec
            return None
        finally:
            self.asking.discard(get_ident())


class FollowedLoader:
    """Stand in for a spec's own loader until the module is executed."""

    def __init__(self, spec: 'ModuleSpec', running: 'list[str]') -> None:
        self.spec, self.loader, self.running = spec, spec.loader, running

    def __getattr__(self, name: str) -> 'Any':
        return getattr(self.loader, name)

    def exec_module(self, module: 'ModuleType') -> None:
        assert self.loader is not None
        self.spec.loader = module.__loader__ = self.loader
        self.running.append(self.spec.name)
        try:
            self.loader.exec_module(module)
        finally:
            self.running.pop()
        if not self.running and 'timm.models' in sys.modules:
            register()


def register() -> None:
    """Import the package, unless a thread has begun to: waiting for it here could be a deadlock."""
    if PACKAGE in sys.modules:
        return
    try:
        check_origin()
        __import__(PACKAGE)
    except (Exception, SystemExit) as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == PACKAGE):  # which is: uninstalled
            warn(error)


def check_origin() -> None:
    """Raise ImportError for a package of this name elsewhere, say in the current folder: nobody switched that on."""
    from importlib.util import find_spec
    from os.path import dirname, realpath
    ours, spec = realpath(dirname(register.__code__.co_filename)), find_spec(PACKAGE)
    if spec and spec.origin and realpath(dirname(spec.origin)) != ours:     # a folder without code has none
        raise ImportError(f'{spec.origin} comes before {ours}')


def warn(error: BaseException) -> None:
    try:
        import warnings
        reason = f'{type(error).__name__}: {error}'.splitlines()[0]
        warnings.warn(f'tinyvit_zoo autoload failed ({reason}); timm works without its models. To turn it off: '
                      f'`tinyvit-zoo autoload off`, or delete tinyvit_zoo_autoload.pth from site-packages.',
                      RuntimeWarning, stacklevel=2)
    except Exception:  # warnings may be errors: `import timm` goes on all the same
        pass


def install() -> None:
    """Wait for timm.models, or register at once if it is imported already (a site directory added late)."""
    if 'timm.models' in sys.modules:
        register()
    elif not any(type(finder).__module__ == __name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, TimmFinder())


if __name__ == 'tinyvit_zoo_autoload':  # as the start-up file names it
    install()
