"""Memory does not grow with the number of images: how many are held at once is counted, not timed."""
import weakref
from pathlib import Path
from typing import Any

import fakes
import pytest
import torch
from torch import nn

from tinyvit_zoo.data.batches import make_batches
from tinyvit_zoo.data.images import FileImages
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.measure import prediction


class Held:
    """Counts objects that are alive."""

    def __init__(self) -> None:
        self.now = self.most = self.all = 0

    def add(self, item: Any) -> Any:
        self.now, self.all = self.now + 1, self.all + 1
        self.most = max(self.most, self.now)
        weakref.finalize(item, self._gone)
        return item

    def _gone(self) -> None:
        self.now -= 1


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {'input_size': (3, 4, 4)}
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.scale * images.mean((2, 3))


def test_predict_holds_two_batches_of_images_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(prediction, '_read', lambda image, transform, cfg: held.add(torch.zeros(3, 4, 4)))
    found = prediction.classify(Mean(), ['a', 'b', 'c'], ['x.png'] * 5000, 1, 32)
    assert len(found) == held.all == 5000 and held.most <= 64


@pytest.mark.parametrize('mode, most', [('stream', 33), ('memory', 8)])
def test_a_folder_is_read_image_by_image(
        mode: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamed: those of a batch; in memory: one for each thread, beside the pixels of all."""
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr('tinyvit_zoo.data.images.cpu_count', lambda: 4)
    fakes.image_folder(tmp_path / 'set', {'a': 250, 'b': 250}, 8)
    held, read = Held(), FileImages.read
    monkeypatch.setattr(FileImages, 'read', lambda self, i: held.add(read(self, i)))
    batches = make_batches(open_source(f'folder:{tmp_path / "set"}').train, 8, 32, 'cpu', train=True, mode=mode,
                           workers=0)
    assert sum(len(labels) for _, labels in batches) == 384
    assert held.all >= 384 and held.most <= most
