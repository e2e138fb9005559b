"""catalogue.json: every weight there is, where it lies, what was published of it and what was measured."""
from __future__ import annotations

import datetime
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from ..data.datasets import DATASETS, DatasetInfo
from ..errors import ZooError, nearest

FOLDER = Path(__file__).parent
OURS = 'tinyvit_zoo'        # the origin of what we trained


class Published(TypedDict):
    """What a paper says: of this file, or, where the file is ours, of the recipe that made it."""
    top1: float
    source: str


class Throughput(TypedDict):
    """Images a second of inference."""
    images_per_second: float
    batch_size: int
    machine: str
    date: str
    command: str


class _Figures(TypedDict):
    top1: float
    loss: float
    images: int
    on: str         # the split
    date: str
    command: str    # that measures it again
    machine: str


class Measured(_Figures, total=False):
    """What we found with the file that is loaded, in fp32."""
    top5: float
    throughput: Throughput


class Provenance(TypedDict):
    """How a weight of ours came to be. `log` is in this folder: a line of JSON an epoch."""
    command: str
    log: str
    date: str
    minutes: float
    machine: str


@dataclass(frozen=True)
class Weight:
    """One entry. Exactly one of `file` (in this folder), `hf_hub_id` and `url` is set; a `file` has its sha256.

    `mean`, `std`: where the recipe has others than the data set's. `encoder`: the file holds no classifier.
    `license`: where it is not the family's. `recipe`, of ours: its name, which is the weight's.
    """
    name: str
    dataset: str
    input_size: tuple[int, int, int]
    crop_pct: float
    origin: str
    recipe: str
    published: Published | None = None
    measured: Measured | None = None
    trained: Provenance | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    file: str = ''
    hf_hub_id: str = ''
    url: str = ''
    sha256: str = ''
    encoder: bool = False
    license: str = ''
    note: str = ''

    @property
    def architecture(self) -> str:
        return self.name.partition('.')[0]

    @property
    def tag(self) -> str:
        return self.name.partition('.')[2]

    @property
    def data(self) -> DatasetInfo:
        return DATASETS[self.dataset]

    @property
    def source(self) -> str:
        return self.file or self.hf_hub_id or self.url

    @property
    def ours(self) -> bool:
        return self.origin == OURS


@cache
def catalogue() -> dict[str, Weight]:
    """All weights by name, in the order of the file."""
    return parse((FOLDER / 'catalogue.json').read_text(encoding='utf-8'))


def weight_of(cfg: Any) -> Weight | None:
    """The entry behind a timm cfg, found by where it lies: `vit_lite` has those of `vit_lite_7_4`."""
    places = (Path(cfg.file).name if cfg.file else None, cfg.hf_hub_id, cfg.url)
    return next((w for w in catalogue().values() if w.tag == cfg.tag and w.source in places), None)


def pretrained_cfgs(
        architectures: Mapping[str, tuple[str, int]], aliases: Mapping[str, str], **shared: Any,
) -> dict[str, dict[str, Any]]:
    """timm pretrained cfgs: one a weight, the default first, and `NAME.untrained` where no weight is of a classifier.

    Args:
        architectures: data set and image size an architecture is meant for, which an untrained one is built for.
        aliases: architectures that take the weights of another.
        shared: fields of timm's cfg that all have in common.
    """
    cfgs: dict[str, dict[str, Any]] = {}
    for name, (dataset, size) in architectures.items():
        own = [w for w in catalogue().values() if w.architecture == aliases.get(name, name)]
        weights = default_first(own, dataset, size)
        for w in weights:
            cfg = {**shared, **_location(w), **_data_cfg(w.dataset, w.input_size, w.crop_pct, w.mean, w.std)}
            cfg.update({'num_classes': 0, 'label_names': None} if w.encoder else {})
            cfgs[f'{name}.{w.tag}'] = {**cfg, 'license': w.license or shared['license']}
        if all(w.encoder for w in weights):
            cfgs[f'{name}.untrained'] = {**shared, **_data_cfg(dataset, (3, size, size), 1.0)}
    return cfgs


def default_first(weights: Iterable[Weight], dataset: str, size: int) -> list[Weight]:
    """An architecture's weights in the order in which they are offered: the first is what no tag gives.

    First come those of the data set and image size that the architecture is meant for. Among them a weight that we
    measured, the most accurate first, comes before those of which only a paper speaks, unless a paper's figure is
    beyond the 95 % interval of our measurement: then ours is no match for it. Else the order is the catalogue's.
    """
    weights = list(weights)
    own = [w for w in weights if (w.dataset, w.input_size[-1]) == (dataset, size)]
    claimed = max((w.published['top1'] for w in own if w.published and not w.measured), default=0.)

    def rank(weight: Weight) -> tuple[bool, int, float]:
        if not weight.measured or weight not in own:
            return weight not in own, 1 if not weight.measured else 0, 0.
        top1, images = weight.measured['top1'], weight.measured['images']
        matches = wilson(round(top1 * images / 100), images)[1] >= claimed
        return False, 0 if matches else 2, -top1

    return sorted(weights, key=rank)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    z = 1.959963984540054
    share, square = correct / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return 100 * max(0., middle - half), 100 * min(1., middle + half)


def _location(weight: Weight) -> dict[str, Any]:
    return {
        'file': str(FOLDER / weight.file) if weight.file else None,
        'hf_hub_id': weight.hf_hub_id or None, 'url': weight.url or None,
    }


def _data_cfg(
        dataset: str, input_size: tuple[int, int, int], crop_pct: float,
        mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None,
) -> dict[str, Any]:
    data = DATASETS[dataset]
    return {
        'input_size': input_size, 'crop_pct': crop_pct, 'mean': mean or data.mean, 'std': std or data.std,
        'num_classes': data.num_classes, 'label_names': data.label_names or None,
    }


# -- reading ---------------------------------------------------------------------------------------------------------
def parse(text: str) -> dict[str, Weight]:
    """The weights that a catalogue's text describes; ZooError that names the entry and the field where it is wrong."""
    try:
        entries = json.loads(text)
    except ValueError as e:
        raise ZooError(f'catalogue.json is no JSON ({e}): mend it.') from e
    if not isinstance(entries, list):
        raise ZooError('catalogue.json is no list: expected a list of entries, one a weight.')
    weights: dict[str, Weight] = {}
    for number, entry in enumerate(entries, 1):
        name = entry.get('name') if isinstance(entry, dict) else None
        where = f'catalogue.json, {name if name and isinstance(name, str) else f"entry {number}"}'
        _check_record(entry, _hints(Weight), _REQUIRED, where)
        tuples = {key: tuple(entry[key]) for key in ('input_size', 'mean', 'std') if entry.get(key)}
        weight = Weight(**{**entry, **tuples})
        if weight.name in weights:
            raise ZooError(f'{where} is there twice: give each weight a tag of its own.')
        _check_promise(weight, where)
        weights[weight.name] = weight
    return weights


_REQUIRED = frozenset(f.name for f in fields(Weight) if f.default is MISSING)
_hints = cache(typing.get_type_hints)


def check_recipes(weights: Iterable[Weight]) -> None:
    """ZooError for a weight of ours whose recipe is not there. Not part of `parse`: recipes are slow to import."""
    from ..recipes import PRETRAININGS, RECIPES

    known = {**RECIPES, **PRETRAININGS}
    for weight in weights:
        if weight.ours and weight.recipe not in known:
            raise ZooError(f'catalogue.json, {weight.name}: there is no recipe {weight.recipe!r}.'
                           f'{nearest(weight.recipe, known)} A weight of ours has the name of its recipe.')


def _check_record(value: Any, hints: Mapping[str, Any], required: frozenset[str], where: str) -> None:
    if not isinstance(value, dict):
        raise ZooError(f'{where} is {value!r}, expected an object with {", ".join(sorted(required))}.')
    for key in value.keys() - hints.keys():
        raise ZooError(f'{where}: there is no field {key!r}.{nearest(key, hints)} Leave it out.')
    for key in sorted(required - value.keys()):
        raise ZooError(f'{where}: {key} is missing; say it.')
    for key, item in value.items():
        _check_value(item, hints[key], f'{where}: {key}')


def _check_value(value: Any, hint: Any, where: str) -> None:
    choices = [h for h in typing.get_args(hint) if h is not type(None)]
    if type(None) in typing.get_args(hint):
        if value is not None:
            _check_value(value, choices[0], where)
    elif typing.is_typeddict(hint):
        _check_record(value, _hints(hint), hint.__required_keys__, where)
    elif typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) != len(choices):
            raise ZooError(f'{where} is {value!r}, expected a list of {len(choices)} numbers.')
        for item in value:
            _check_value(item, choices[0], where)
    else:
        allowed = (int, float) if hint is float else hint
        right = isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))
        if not right or (hint is float and not math.isfinite(value)):
            raise ZooError(f'{where} is {value!r}, expected {_KINDS[hint]}.')


_KINDS = {str: 'a text', int: 'a whole number', float: 'a number', bool: 'true or false'}


def _check_promise(weight: Weight, where: str) -> None:
    """What types do not say: where the file is, that figures can be, and that ours tell how they were made."""
    if not re.fullmatch(r'\w+\.\w+', weight.name):
        raise ZooError(f'{where}: name is {weight.name!r}, expected ARCHITECTURE.TAG.')
    if weight.dataset not in DATASETS:
        raise ZooError(f'{where}: there is no data set {weight.dataset!r}.{nearest(weight.dataset, DATASETS)}')
    if bool(weight.file) + bool(weight.hf_hub_id) + bool(weight.url) != 1:
        raise ZooError(f'{where}: expected exactly one of file, hf_hub_id and url.')
    if (weight.file or weight.sha256) and not re.fullmatch('[0-9a-f]{64}', weight.sha256):
        raise ZooError(f'{where}: sha256 is {weight.sha256!r}, expected the 64 hexadecimal digits of the file.')
    if weight.file and (Path(weight.file).name != weight.file or not weight.file.endswith('.safetensors')):
        raise ZooError(f'{where}: file is {weight.file!r}, expected the name of a .safetensors file in weights/.')
    for record in ('published', 'measured', 'trained'):
        _check_figures(getattr(weight, record) or {}, f'{where}: {record}')
    if weight.ours and (weight.recipe != weight.name or weight.trained is None):
        raise ZooError(f'{where} is of our training: expected recipe {weight.name!r}, and trained with its log.')


def _check_figures(record: Mapping[str, Any], where: str) -> None:
    """In `published`, `measured` or `trained`: percentages are some, dates are dates, texts say something."""
    for key, value in record.items():
        if isinstance(value, dict):
            _check_figures(value, f'{where}: {key}')
        elif value == '':
            raise ZooError(f'{where}: {key} is empty; a figure is shown only with its {key}.')
        elif key in ('top1', 'top5') and not 0 <= value <= 100:
            raise ZooError(f'{where}: {key} is {value}, expected a percentage.')
        elif key == 'date' and not _is_date(value):
            raise ZooError(f'{where}: date is {value!r}, expected YEAR-MONTH-DAY.')


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
