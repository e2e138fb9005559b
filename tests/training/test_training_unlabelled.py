"""Images without labels are taken by pre-training, however they are given, and by nothing else."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tinyvit_zoo as zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.data.images import decode
from tinyvit_zoo.data.sources import open_source

PIXELS = np.random.RandomState(0).randint(0, 256, (30, 8, 8, 3)).astype(np.uint8)


def as_folder(folder: Path, inner: str) -> Path:
    (folder / 'photos' / inner).mkdir(parents=True)
    for i, image in enumerate(PIXELS):
        Image.fromarray(image).save(folder / 'photos' / inner / f'{i:02}.png')
    return folder / 'photos'


class Alone(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, i: int) -> Image.Image:
        return Image.fromarray(PIXELS[i])


@pytest.mark.parametrize('make', [
    lambda folder: as_folder(folder, ''), lambda folder: as_folder(folder, 'one'),
    lambda folder: as_folder(folder, 'train/deep/er'), lambda folder: f'folder:{as_folder(folder, "")}',
    lambda folder: np.savez(folder / 'a.npz', train_images=PIXELS) or folder / 'a.npz', lambda _: PIXELS,
    lambda _: torch.from_numpy(PIXELS), lambda _: (PIXELS, None), lambda _: {'train': [*map(Image.fromarray, PIXELS)]},
    lambda folder: sorted(as_folder(folder, '').iterdir()), lambda _: Alone(), lambda _: [*PIXELS],
    lambda _: torch.utils.data.TensorDataset(torch.from_numpy(PIXELS))], ids=range(13))
def test_images_without_labels_are_the_same_however_given(make: Callable[[Path], Any], tmp_path: Path) -> None:
    source = open_source(make(tmp_path), labels=False)
    assert (len(source.train), source.val, source.test, len(source.class_names)) == (30, None, None, 1)
    assert np.array_equal(decode(source.train.images, (8, 8), 3).permute(0, 2, 3, 1), PIXELS)


def test_labels_are_kept_where_there_are_any(tmp_path: Path) -> None:
    """And what is no image is refused as before."""
    for data in ('digits', (PIXELS, np.arange(30) % 3), [PIXELS, np.arange(30) % 3]):
        assert len(open_source(data, labels=False).class_names) >= 2
    endless = type('Endless', (), {'__getitem__': lambda self, i: PIXELS[i]})()
    for wrong in (5, [], [5], (None, None), np.array(None), np.float32(3), {'train': None}, endless,
                  {'train': [], 'test': []}, tmp_path / 'nowhere', as_folder(tmp_path, '') / '00.png'):
        with pytest.raises(ZooError):
            open_source(wrong, labels=False)
    with pytest.raises(ZooError, match='expected a folder for each class'):
        open_source(tmp_path / 'photos')


@pytest.mark.filterwarnings('error:No artists')
@pytest.mark.parametrize('method', ['mae_small', 'self_distill'])
def test_a_pretraining_without_labels(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss and the spread are shown, no accuracy; it is resumed, and fine-tuned with labels."""
    data = f'folder:{as_folder(tmp_path, "")}'
    argv = ['pretrain', method, '--data', data, '--model', 'vit_lite_2_4', '--device', 'cpu', '--epochs', '2',
            '--batch-size', '8', '--img-size', '8', '--warmup-epochs', '0', '--output', str(tmp_path / 'run')]
    assert main(argv) == 0 and main([*argv, '--resume']) == 0
    shown = capsys.readouterr().out + (tmp_path / 'run' / 'card.md').read_text()
    assert 'before training: spread' in shown and 'spread of the features' in shown and 'k-NN' not in shown
    assert 'knn_top1' not in (tmp_path / 'run' / 'log.jsonl').read_text()
    tuned = zoo.train('vit_lite_2_4', (PIXELS, np.arange(30) % 3), start=tmp_path / 'run', epochs=1, warmup_epochs=0,
                      batch_size=8, output=tmp_path / 'tuned', device='cpu')
    assert len(tuned.classes) == 3
