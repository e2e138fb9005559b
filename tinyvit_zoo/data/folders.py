"""Open folders of image files: class folders of your own, Tiny-ImageNet, CINIC-10."""
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import ZooError
from .datasets import DATASETS
from .images import EXTENSIONS, FileImages
from .splits import Parts, Split, draw

_VALIDATION = ('val', 'valid', 'validation')
_TEST_SHARE = 0.2   # of a folder that has no split of its own
_TEST_SEED = 0      # never the run's: another seed must not train on these test images


def open_folder(root: Path) -> Parts:
    """Open `train`, `val` and `test` with class folders inside, or class folders alone, holding a fifth out."""
    inside = subfolders(root)
    named = {folder.name.lower(): folder for folder in inside}
    if 'train' in named and (subfolders(named['train']) or set(named) <= {'train', 'test', *_VALIDATION}):
        validation = [named[name] for name in _VALIDATION if name in named]
        if len(validation) > 1:
            raise ZooError(f'{root} has {_list(validation)}: expected one of them, remove or rename the other.')
        train, names = _class_folders(named['train'])
        val, test = (_class_folders(folder, names)[0] if folder else None
                     for folder in (next(iter(validation), None), named.get('test')))
        return Parts(train, val, test, names)
    if any(name in named and subfolders(named[name]) for name in ('test', *_VALIDATION)):
        raise ZooError(f'{root} has {_list(inside)} and no train: expected train, val and test, or class folders.')
    if len(inside) == 1 and len(subfolders(inside[0])) > 1:
        raise ZooError(f'{root} holds one folder {inside[0].name} with folders inside: give folder:{inside[0]}.')
    everything, names = _class_folders(root)
    held = draw(everything.labels, round(_TEST_SHARE * len(everything)), _TEST_SEED)
    if not held.any():
        raise ZooError(f'{root} has {len(everything)} images in {len(names)} classes, too few to hold a fifth out.')
    return Parts(everything.select(~held), None, everything.select(held), names)


def open_cinic10(place: str) -> Parts:
    """Open `train`, `valid` and `test` as published, 90,000 images each."""
    root, class_names = Path(place), DATASETS['cinic10'].label_names
    _require(root, ('train', 'valid', 'test'), 'CINIC-10', 'CINIC-10.tar.gz')
    train, val, test = (_class_folders(root / name, class_names)[0] for name in ('train', 'valid', 'test'))
    return Parts(train, val, test, class_names)


def open_tiny_imagenet(place: str) -> Parts:
    """Open it as published. Papers report on `val`, the only labelled part beside `train`: here it is the test set."""
    root = Path(place)
    _require(root, ('train', 'val'), 'Tiny-ImageNet', 'tiny-imagenet-200.zip')
    train, ids = _class_folders(root / 'train')
    words = _rows(root / 'words.txt')       # WordNet id, its names
    names = {row[0]: row[1].split(',')[0].strip() for row in words if len(row) > 1}
    annotations = root / 'val' / 'val_annotations.txt'
    test = _annotated(annotations, ids) if annotations.is_file() else _class_folders(root / 'val', ids)[0]
    return Parts(train, None, test, tuple(names.get(name, name) for name in ids))


def _rows(path: Path) -> list[list[str]]:
    """Read lines of fields with tabs between them."""
    text = path.read_text(encoding='utf-8') if path.is_file() else ''
    return [line.split('\t') for line in text.splitlines() if line.strip()]


def _annotated(path: Path, ids: Sequence[str]) -> Split:
    """Read `val_annotations.txt`: file, class, bounding box."""
    rows = _rows(path)
    wrong = next((i for i, row in enumerate(rows, 1) if len(row) < 2 or row[1] not in ids), None)
    if wrong or not rows:
        raise ZooError(f'{path}, line {wrong or 1}, is not a file name, a tab and a class of train: unpack it again.')
    folder = path.parent / 'images'
    missing = {row[0] for row in rows} - set(os.listdir(folder) if folder.is_dir() else ())
    if missing:
        raise ZooError(f'{len(missing)} images of {path} are not in {folder} ({min(missing)}): unpack the set again.')
    label_of = {name: label for label, name in enumerate(ids)}
    return Split(FileImages(folder, [row[0] for row in rows]), torch.tensor([label_of[row[1]] for row in rows]))


def _require(root: Path, folders: Sequence[str], title: str, archive: str) -> None:
    if not all((root / name).is_dir() for name in folders):
        raise ZooError(f'{root} has {_list(subfolders(root))}, {title} has {", ".join(folders)}: unpack {archive}.')


def _class_folders(root: Path, class_names: Sequence[str] | None = None) -> tuple[Split, tuple[str, ...]]:
    """Open the class folders in `root`, sorted; `class_names` are those it must have."""
    files = {folder.name: _image_files(folder) for folder in subfolders(root)}
    if class_names is None and len(files) < 2:
        loose = sum(_is_image(path.name) for path in root.iterdir())
        raise ZooError(f'{root} has {_list(list(files))}{f" and {loose} loose images" if loose else ""}: expected a '
                       f'folder for each class, two classes or more.')
    expected = files if class_names is None else class_names
    differences = [f'{title} {_list(sorted(names))}' for title, names in (
        ('missing:', set(expected) - set(files)), ('too many:', set(files) - set(expected))) if names]
    if differences:
        raise ZooError(f'{root} has other class folders ({"; ".join(differences)}): every split needs the same.')
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise ZooError(f'{root} has no images in {_list(empty)}: add {" ".join(EXTENSIONS)} files, or remove it.')
    names = tuple(class_names or sorted(files))
    labels = [torch.full((len(files[name]),), label) for label, name in enumerate(names)]
    paths = [os.path.join(name, path) for name in names for path in files[name]]
    return Split(FileImages(root, paths), torch.cat(labels)), names


def subfolders(root: Path) -> list[Path]:
    """List folders, sorted, without hidden ones and those that macOS leaves in a zip."""
    if not root.is_dir():
        raise ZooError(f'There is no folder {root}: give the folder that holds the images.')
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith('.') and p.name != '__MACOSX')


def _image_files(folder: Path) -> list[str]:
    """List image files at any depth, relative to `folder`, sorted."""
    paths = []
    for where, inside, files in os.walk(folder, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith('.')]
        below = os.path.relpath(where, folder) if where != str(folder) else ''
        paths += [os.path.join(below, name) for name in files if _is_image(name)]
    return sorted(paths)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


def _list(items: Sequence[object]) -> str:
    """Name at most five."""
    names = [item.name if isinstance(item, Path) else str(item) for item in items]
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return (', '.join(names[:5]) or 'no folders') + more
