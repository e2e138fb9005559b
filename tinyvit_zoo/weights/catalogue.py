"""catalogue.json: every weight there is, where it lies, what was published of it and what was measured.

The order counts: the first weight of an architecture is what `pretrained=True` without a tag gives.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..data.info import DATASETS, DatasetInfo

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Weight:
    """One entry. Exactly one of `file` (in this folder), `hf_hub_id` and `url` is set; a `file` has its sha256.

    `published` is what the paper says ({'top1', 'source'}), `measured` what we found (also 'on', 'date', 'command').
    `encoder`: the file holds no classifier. `license`: where it is not the family's.
    """
    name: str
    dataset: str
    input_size: tuple[int, int, int]
    crop_pct: float
    origin: str
    recipe: str
    published: dict[str, Any] | None = None
    measured: dict[str, Any] | None = None
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


@cache
def catalogue() -> dict[str, Weight]:
    """All weights by name, in the order of the file."""
    entries = json.loads((FOLDER / 'catalogue.json').read_text(encoding='utf-8'))
    weights = [Weight(**{**entry, 'input_size': tuple(entry['input_size'])}) for entry in entries]
    return {weight.name: weight for weight in weights}


def weight_of(cfg: Any) -> Weight | None:
    """The entry behind a timm cfg, found by where it lies: `vit_lite` has those of `vit_lite_7_4`."""
    places = (Path(cfg.file).name if cfg.file else None, cfg.hf_hub_id, cfg.url)
    return next((w for w in catalogue().values() if w.tag == cfg.tag and w.source in places), None)


def pretrained_cfgs(
        architectures: Mapping[str, tuple[str, int]], aliases: Mapping[str, str], **shared: Any,
) -> dict[str, dict[str, Any]]:
    """timm pretrained cfgs: one a weight, and `NAME.untrained` where no weight is of a classifier.

    Args:
        architectures: data set and image size an architecture is meant for, which an untrained one is built for.
        aliases: architectures that take the weights of another.
        shared: fields of timm's cfg that all have in common.
    """
    cfgs: dict[str, dict[str, Any]] = {}
    for name, (dataset, size) in architectures.items():
        weights = [w for w in catalogue().values() if w.architecture == aliases.get(name, name)]
        for w in weights:
            cfg = {**shared, **_location(w), **_data_cfg(w.dataset, w.input_size, w.crop_pct)}
            cfg.update({'num_classes': 0, 'label_names': None} if w.encoder else {})
            cfgs[f'{name}.{w.tag}'] = {**cfg, 'license': w.license or shared['license']}
        if all(w.encoder for w in weights):
            cfgs[f'{name}.untrained'] = {**shared, **_data_cfg(dataset, (3, size, size), 1.0)}
    return cfgs


def _location(weight: Weight) -> dict[str, Any]:
    return {
        'file': str(FOLDER / weight.file) if weight.file else None,
        'hf_hub_id': weight.hf_hub_id or None, 'url': weight.url or None,
    }


def _data_cfg(dataset: str, input_size: tuple[int, int, int], crop_pct: float) -> dict[str, Any]:
    data = DATASETS[dataset]
    return {
        'input_size': input_size, 'crop_pct': crop_pct, 'mean': data.mean, 'std': data.std,
        'num_classes': data.num_classes, 'label_names': data.label_names or None,
    }
