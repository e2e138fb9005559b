"""Open tables: a CSV of image paths and labels, and the sets of MedMNIST by their names."""
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ZooError, nearest
from ..runtime.text import composed, one_line, printable
from .folders import hold_out
from .images import FileImages
from .splits import Parts, Split, hot, numbered, sorted_names

_COLUMNS = {'path': ('path', 'file', 'filename', 'file_name', 'image'), 'label': ('label', 'class'),
            'labels': ('labels',), 'split': ('split',)}
_SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}
_HOT = {'0': False, '0.0': False, '1': True, '1.0': True}       # cells of a class's column


def open_csv(place: str, training: bool = True, whole: bool = False) -> Parts:
    """Open a file of the columns path, label and, optionally, split; paths are relative to its folder.

    Images of several labels have them in one column `labels`, with ; or | between, or a column of 0 and 1 for each
    class. Without the column `split` a fifth is held out for testing, as of a folder; `whole`: all are for testing. Not
    `training`: any of the splits will do.
    """
    path = Path(place)
    rows, names = _rows(path)
    several = 'label' not in rows[0]['columns']
    if not names:
        names = list(sorted_names(label for row in rows for label in row['labels']))
    missing = [row['path'] for row in rows if not os.path.isfile(path.parent / row['path'])]
    if missing:
        some = printable(missing[0]) + ', ...' * (len(missing) > 1)
        raise ZooError(f'{len(missing)} of {len(rows)} images of {path} do not exist ({some}): expected paths relative '
                       f'to {path.absolute().parent}.')
    splits = {}
    for name in dict.fromkeys(row['split'] for row in rows):
        part = [row for row in rows if row['split'] == name]
        labels = [row['labels'] for row in part]
        splits[name] = Split(FileImages(path.parent, [row['path'] for row in part]), hot(labels, names, str(path))
                             if several else numbered([label for label, in labels], names, str(path)))
    if 'train' not in splits and training:
        raise ZooError(f'{path} has rows of {", ".join(splits)} and none of train: expected some.')
    if 'split' not in rows[0]['columns']:
        return hold_out(splits['train'], str(path), names, whole)
    return Parts.of(splits.get('train'), splits.get('val'), splits.get('test'), tuple(names))


def _rows(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Read all rows, each with its path, labels, split ('train' without that column), and the columns.

    Also returns the names of the classes, where each has a column.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError('it is no regular file')   # a pipe would wait for a writer
        with open(path, encoding='utf-8-sig', newline='') as file:
            first = file.readline()
            file.seek(0)
            delimiter = next((each for each in '\t;' if each in first and ',' not in first), ',')
            lines = [line for line in csv.reader(file, delimiter=delimiter, strict=True) if line]
    except (OSError, ValueError, csv.Error) as e:
        raise ZooError(f'{path} cannot be read as CSV ({one_line(e)}): expected UTF-8 with a first line '
                       f'path,label,split.') from e
    head = [composed(cell.strip().lower()) for cell in lines[0]] if lines else []
    if twice := next((name for i, name in enumerate(head) if name and name in head[:i]), ''):
        raise ZooError(f'{path} has the column {printable(twice)!r:.80} twice: rename or remove one.')
    place = {key: next((head.index(name) for name in names if name in head), None) for key, names in _COLUMNS.items()}
    if None not in (place['label'], place['labels']):
        raise ZooError(f'{path} has a column for one label an image and one for several '
                       f'({printable(", ".join(head))}): remove one of them.')
    own = {}
    if place['label'] is place['labels'] is None:
        own = {i: cell.strip() for i, cell in enumerate(lines[0] if lines else ()) if i not in place.values()}
        own = own if all(line[i].strip() in _HOT for line in lines[1:] for i in own if i < len(line)) else {}
    if place['path'] is None or len(lines) < 2 or (place['label'] is place['labels'] is None and len(own) < 2):
        raise ZooError(f'{path} begins with {printable(", ".join(head)) or "nothing"}: expected a first line '
                       f'path,label or path,label,split, and a row for each image; for several labels an image a '
                       f'column labels with ; between them, or a column of 0 and 1 for each class.')
    if own:
        return [{**_row(path, number, line, place), 'labels': [name for i, name in own.items() if _HOT.get(
            line[i].strip() if i < len(line) else '')]} for number, line in enumerate(lines[1:], 2)], [*own.values()]
    return [_row(path, number, line, place) for number, line in enumerate(lines[1:], 2)], []


def _row(path: Path, number: int, line: Sequence[str], place: dict[str, int | None]) -> dict[str, Any]:
    columns = [key for key, i in place.items() if i is not None]
    cells = {key: line[i].strip() for key, i in place.items() if i is not None and i < len(line)}
    split = _SPLITS.get(cells.get('split', 'train').lower())
    if not cells.get('path') or ('label' in columns and not cells.get('label')) or split is None:
        raise ZooError(f'{path}, row {number}, is {printable(",".join(line))!r:.100}: expected a path, a label'
                       f'{" and train, val or test" if "split" in columns else ""}.')
    labels = [cells['label']] if 'label' in columns else cells.get('labels', '').replace('|', ';').split(';')
    return {'path': cells['path'], 'labels': [label.strip() for label in labels if label.strip()], 'split': split,
            'columns': columns}


def medmnist_file(name: str, download: bool) -> tuple[Path, tuple[str, ...]]:
    """Return the .npz of a set of MedMNIST ('pathmnist', 'pathmnist_64') and its class names."""
    try:
        import medmnist
    except ImportError as e:
        raise ZooError(f'medmnist: needs {e.name}, which is not installed: pip install '
                       f"'tinyvit-zoo[medmnist]'.") from e
    flag, _, size = name.partition('_')
    flat = {key: info for key, info in medmnist.INFO.items() if not key.endswith('3d')}
    if flag not in flat or size not in ('', '64', '128', '224'):
        raise ZooError(f'There is no set {name!r} in MedMNIST.{nearest(flag, flat)} Expected one of {", ".join(flat)}, '
                       f'or with _64, _128 or _224 for its larger images.')
    info, path = flat[flag], Path(medmnist.info.DEFAULT_ROOT, f'{name}.npz')
    if not path.is_file():
        if not download:
            raise ZooError(f'{path} does not exist: give --download to fetch it (from Zenodo).')
        try:
            getattr(medmnist, info['python_class'])(split='train', download=True, size=int(size) if size else None)
        except Exception as e:  # the network and the package have their own
            raise ZooError(f'{name} cannot be fetched ({one_line(e)}): try again, or put {path.name} into '
                           f'{path.parent}.') from e
    return path, tuple(info['label'][key] for key in sorted(info['label'], key=int))
