"""catalogue.json: every set of weights, where its file is, and its published and measured figures."""
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NewType, TypedDict

from ..data.datasets import DATASETS, Dataset
from ..runtime.packaged import read_packaged

FOLDER = Path(__file__).parent
OURS = 'tinyvit_zoo'        # the origin of weights that we trained

Text = NewType('Text', str)     # not empty
Percent = NewType('Percent', float)
Date = NewType('Date', str)


class Published(TypedDict):
    top1: Percent   # of a paper: for this file or, where the file is ours, for its recipe
    source: Text


class Throughput(TypedDict):
    images_per_second: float
    batch_size: int
    machine: Text
    date: Date
    command: Text


class _Figures(TypedDict):
    top1: Percent
    loss: float
    images: int
    on: Text        # the split
    date: Date
    command: Text   # measures it again
    machine: Text


class Measured(_Figures, total=False):
    """Our figures of the file as it is loaded, in fp32."""
    top5: Percent
    throughput: Throughput


class Provenance(TypedDict):
    command: Text
    log: Text       # a file in this folder, a line of JSON per epoch
    date: Date
    minutes: float
    machine: Text


@dataclass(frozen=True)
class Weight:
    """An entry. Exactly one of `file` (in this folder, with its sha256), `hf_hub_id` and `url` is set.

    `default`: loaded by `pretrained=True`. `mean`, `std`, `license`: if not those of dataset and family. `encoder`:
    without a classifier. `recipe`: for our weights, a recipe of the same name.
    """
    name: str
    dataset: str
    input_size: tuple[int, int, int]
    crop_pct: float
    origin: str
    recipe: str
    default: bool = False
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
    def data(self) -> Dataset:
        return DATASETS[self.dataset]

    @property
    def source(self) -> str:
        return self.file or self.hf_hub_id or self.url

    @property
    def ours(self) -> bool:
        return self.origin == OURS


@cache
def catalogue() -> dict[str, Weight]:
    """Return all weights by name, in the order of the file."""
    return parse(read_packaged('weights/catalogue.json').decode())


def weight_of(cfg: Any) -> Weight | None:
    """Return the entry of a timm cfg, by tag and source: `vit_lite` has the weights of `vit_lite_7_4`."""
    places = (Path(cfg.file).name if cfg.file else None, cfg.hf_hub_id, cfg.url)
    return next((w for w in catalogue().values() if w.tag == cfg.tag and w.source in places), None)


def promised_sha256(source: str | None) -> str:
    """Return the catalogue's digest of the file at this path, address or Hub id; '' if it has none."""
    digests = {str(FOLDER / w.file) if w.file else w.source: w.sha256 for w in catalogue().values()}
    return digests.get(source or '', '')


def pretrained_cfgs(architectures: Mapping[str, tuple[str, int]], aliases: Mapping[str, str],
                    **shared: Any) -> dict[str, dict[str, Any]]:
    """Return timm's cfgs by `NAME.TAG`, and `NAME.untrained` where no weights have a classifier; `shared`: of all."""
    # architectures: dataset and image size of each; aliases: those with the weights of another
    cfgs: dict[str, dict[str, Any]] = {}
    for name, (dataset, size) in architectures.items():
        own = [w for w in catalogue().values() if w.architecture == aliases.get(name, name)]
        for w in default_first(own, dataset, size):
            cfgs[f'{name}.{w.tag}'] = {
                **shared, **_data_cfg(w.data, w.input_size, w.crop_pct), 'url': w.url or None,
                'file': str(FOLDER / w.file) if w.file else None, 'hf_hub_id': w.hf_hub_id or None,
                'mean': w.mean or w.data.mean, 'std': w.std or w.data.std, 'license': w.license or shared['license'],
                **({'num_classes': 0, 'label_names': None} if w.encoder else {})}
        if all(w.encoder for w in own):
            cfgs[f'{name}.untrained'] = {**shared, **_data_cfg(DATASETS[dataset], (3, size, size), 1.0)}
    return cfgs


def _data_cfg(data: Dataset, input_size: tuple[int, int, int], crop_pct: float) -> dict[str, Any]:
    return {'input_size': input_size, 'crop_pct': crop_pct, 'mean': data.mean, 'std': data.std,
            'num_classes': data.num_classes, 'label_names': data.label_names or None}


def default_first(weights: Iterable[Weight], dataset: str, size: int) -> list[Weight]:
    """Order an architecture's weights: the default, those of its own dataset and size, measured ones, the others."""
    own = (dataset, size)
    return sorted(weights, key=lambda w: (not w.default, (w.dataset, w.input_size[-1]) != own, not w.measured))


def parse(text: str) -> dict[str, Weight]:
    """Read the text of a catalogue, whose entries tools/check_catalogue.py has checked."""
    entries: list[dict[str, Any]] = [{key: tuple(value) if isinstance(value, list) else value
                                      for key, value in entry.items()} for entry in json.loads(text)]
    return {entry['name']: Weight(**entry) for entry in entries}
