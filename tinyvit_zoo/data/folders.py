"""Open folders of image files: class folders of your own, Tiny-ImageNet, CINIC-10."""
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import ZooError
from ..runtime.text import composed, one_line, printable
from .datasets import DATASETS
from .files import EXTENSIONS, Finder, is_image
from .images import FileImages
from .splits import Parts, Split, draw, sorted_names

_VALIDATION = ('val', 'valid', 'validation', 'dev')
_OTHERS = {'training': 'train', 'testing': 'test'}      # names of splits, where there is another split
_TEST_SHARE = 0.2   # of a folder that has no split of its own
_TEST_SEED = 0      # never the run's: another seed must not train on these test images


def open_folder(root: Path, training: bool = True, whole: bool = False, labels: bool = True) -> Parts:
    """Open `train`, `val` and `test` with class folders inside, or class folders alone, holding a fifth out.

    Not `training`: any of the splits, and classes, will do. `whole`: class folders alone are all for testing. Not
    `labels`: all images of a folder, or of its `train`, that has not two classes are one, and for training.
    """
    with Finder(root) as finder:
        inner = _splits(finder.folders(root)).get('train', root)
        if not labels and len(finder.folders(inner)) < 2 and (paths := finder.images(inner)):
            return Parts(Split(FileImages(inner, paths), torch.zeros(len(paths), dtype=torch.int64)), None, None, ('',))
        return _open_parts(root, finder, training, whole)


def _open_parts(root: Path, finder: Finder, training: bool, whole: bool) -> Parts:
    inside = finder.folders(root)
    named = _splits(inside)
    if 'train' in named and (finder.folders(named['train']) or set(named) <= {'train', 'test', *_VALIDATION}):
        validation = [named[name] for name in _VALIDATION if name in named]
        if len(validation) > 1:
            raise ZooError(f'{root} has {_list(validation)}: expected one of them, remove or rename the other.')
        train, names = _class_folders(named['train'], finder)
        val, test = (_class_folders(folder, finder, names, complete=False)[0] if folder else None
                     for folder in (next(iter(validation), None), named.get('test')))
        for folder in inside:
            if folder not in (named['train'], named.get('test'), *validation):
                finder.skip('not train, val or test', folder)
        return Parts(train, val, test, names)
    alone = {name: named[name] for name in ('test', *_VALIDATION) if name in named and finder.folders(named[name])}
    if alone and not training and len(alone) == len(inside) == 1:
        test, names = _class_folders(inside[0], finder, least=1)
        return Parts.of(None, None if 'test' in alone else test, test if 'test' in alone else None, names)
    if alone:
        raise ZooError(f'{root} has {_list(inside)} and no train: expected train, val and test, or class folders.')
    if len(inside) == 1 and len(finder.folders(inside[0])) > 1:
        raise ZooError(f'{root} holds one folder {inside[0].name} with folders inside: give folder:{inside[0]}.')
    if len(inside) > 1 and all({'train', 'test'} <= {*_splits(finder.folders(folder))} for folder in inside):
        raise ZooError(f'{root} has train and test inside its class folders: put the class folders into train and '
                       f'test.')
    everything, names = _class_folders(root, finder, least=2 if training else 1)
    return hold_out(everything, str(root), names, whole)


def _splits(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders by their names, those of splits in one form."""
    names = [folder.name.lower() for folder in folders]
    if sum(name in ('train', 'test', *_VALIDATION, *_OTHERS) for name in names) > 1:
        names = [_OTHERS.get(name, name) for name in names]
        if max(names.count('train'), names.count('test')) > 1:
            raise ZooError(f'{folders[0].parent} has {_list(folders)}: expected one train and one test, remove or '
                           f'rename the other.')
    return dict(zip(names, folders, strict=True))


def hold_out(everything: Split, title: str, names: Sequence[str], whole: bool) -> Parts:
    """Split images that have no split of their own: a fifth, always the same, is for testing; `whole`: all are."""
    if whole:
        return Parts.of(None, None, everything, tuple(names))
    held = draw(everything.labels, round(_TEST_SHARE * len(everything)), _TEST_SEED)
    if not held.any():
        raise ZooError(f'{title} has {len(everything)} images in {len(names)} classes, too few to hold out a fifth: '
                       f'give more, or evaluate on all of them (split all).')
    return Parts(everything.select(~held), None, everything.select(held), tuple(names))


def open_cinic10(place: str) -> Parts:
    """Open `train`, `valid` and `test` as published, 90,000 images each."""
    root, class_names = Path(place), DATASETS['cinic10'].label_names
    with Finder(root) as finder:
        _require(root, finder, ('train', 'valid', 'test'), 'CINIC-10', 'CINIC-10.tar.gz')
        train, val, test = (_class_folders(root / name, finder, class_names)[0] for name in ('train', 'valid', 'test'))
    return Parts(train, val, test, class_names)


def open_tiny_imagenet(place: str) -> Parts:
    """Open it as published. Papers report on `val`, the only labelled part beside `train`: here it is the test set."""
    root = Path(place)
    with Finder(root) as finder:
        _require(root, finder, ('train', 'val'), 'Tiny-ImageNet', 'tiny-imagenet-200.zip')
        train, ids = _class_folders(root / 'train', finder)
        words = _rows(root / 'words.txt')       # WordNet id, its names
        names = {row[0]: row[1].split(',')[0].strip() for row in words if len(row) > 1}
        annotations = root / 'val' / 'val_annotations.txt'
        test = _annotated(annotations, ids) if annotations.is_file() else _class_folders(root / 'val', finder, ids)[0]
    return Parts(train, None, test, tuple(names.get(name, name) for name in ids))


def _rows(path: Path) -> list[list[str]]:
    """Read lines of fields with tabs between them."""
    try:
        text = path.read_text(encoding='utf-8') if path.is_file() else ''
    except (OSError, ValueError) as e:
        raise ZooError(f'{path} cannot be read ({one_line(e)}): unpack it again.') from e
    return [line.split('\t') for line in text.splitlines() if line.strip()]


def _annotated(path: Path, ids: Sequence[str]) -> Split:
    """Read `val_annotations.txt`: file, class, bounding box."""
    rows = _rows(path)
    wrong = next((i for i, row in enumerate(rows, 1) if len(row) < 2 or row[1] not in ids), None)
    if wrong or not rows:
        raise ZooError(f'{path}, line {wrong or 1}, is not a file name, a tab and a training class: unpack it again.')
    folder = path.parent / 'images'
    missing = {row[0] for row in rows} - set(os.listdir(folder) if folder.is_dir() else ())
    if missing:
        raise ZooError(f'{len(missing)} images of {path} are not in {folder} ({min(missing)}): unpack the set again.')
    label_of = {name: label for label, name in enumerate(ids)}
    return Split(FileImages(folder, [row[0] for row in rows]), torch.tensor([label_of[row[1]] for row in rows]))


def _require(root: Path, finder: Finder, folders: Sequence[str], title: str, archive: str) -> None:
    if not all((root / name).is_dir() for name in folders):
        raise ZooError(f'{root} has {_list(finder.folders(root))}, {title} has {", ".join(folders)}: unpack {archive}.')


def _class_folders(root: Path, finder: Finder, class_names: Sequence[str] | None = None, complete: bool = True,
                   least: int = 2) -> tuple[Split, tuple[str, ...]]:
    """Open the class folders in `root`, sorted; `class_names` are those it must have, or, not `complete`, may have."""
    folders: dict[str, str] = {}
    for folder in finder.folders(root):
        if (other := folders.setdefault(composed(folder.name), folder.name)) != folder.name:
            raise ZooError(f'{root} has the folder {printable(composed(other))} in two forms of Unicode: merge them.')
    files = {name: finder.images(root / folder) for name, folder in folders.items()}
    for path in sorted(root.iterdir()) if files else ():
        if is_image(path.name) and path.is_file():
            finder.skip('images beside the class folders', path)
    if class_names is None and len(files) < least:
        loose = sum(is_image(path.name) for path in root.iterdir())
        raise ZooError(f'{root} has {_list(list(files))}{f" and {loose} loose images" if loose else ""}: expected a '
                       f'folder for each class{", two classes or more" * (least > 1)}.')
    expected = files if class_names is None else class_names
    if not complete:
        files = {name: paths for name, paths in files.items() if paths or name not in expected}
        expected = [name for name in expected if name in files]
        if not files:
            raise ZooError(f'{root} has no images in folders of the classes of train: add some, or remove it.')
    differences = [f'{title} {_list(sorted(names))}' for title, names in (
        ('missing:', set(expected) - set(files)), ('too many:', set(files) - set(expected))) if names]
    if differences:
        needed = 'every split needs the same' if complete else 'expected those of train'
        raise ZooError(f'{root} has other class folders ({"; ".join(differences)}): {needed}.')
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise ZooError(f'{root} has no images in {_list(empty)}: add {" ".join(EXTENSIONS)} files, or remove it.')
    names = tuple(class_names or sorted_names(files))
    labels = [torch.full((len(files.get(name, ())),), label) for label, name in enumerate(names)]
    paths = [os.path.join(folders[name], path) for name in names for path in files.get(name, ())]
    return Split(FileImages(root, paths), torch.cat(labels)), names


def _list(items: Sequence[object]) -> str:
    """Name at most five."""
    names = [item.name if isinstance(item, Path) else str(item) for item in items]
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return (', '.join(names[:5]) or 'no folders') + more
