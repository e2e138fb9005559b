"""Batches: the same images at the same time from memory and streamed, in one process and in several, resumed or not."""
from __future__ import annotations

import gc
import io
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import time
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from data_cases import folder_split, numbered
from PIL import Image
from timm.data import ImageDataset, create_loader, create_transform
from torch import Tensor
from torchvision.transforms import v2

from tinyvit_zoo.data import batches as loaders
from tinyvit_zoo.data.batches import Batches, make_batches
from tinyvit_zoo.data.images import FileImages
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.data.splits import Split
from tinyvit_zoo.errors import ZooError

CPU = torch.device('cpu')


def epoch_of(batches: Batches, epoch: int = 0, start_batch: int = 0) -> list[tuple[Tensor, Tensor]]:
    batches.set_epoch(epoch, start_batch)
    return list(batches)


def labels_of(batches: Batches, epoch: int = 0, start_batch: int = 0) -> list[list[int]]:
    """And every image must be that of its label."""
    found = epoch_of(batches, epoch, start_batch)
    for images, labels in found:
        assert (images[:, 0, 0, 0].long() * 256 + images[:, 1, 3, 3].long() == labels).all()
    return [labels.tolist() for _, labels in found]


def flat(batches: list[list[int]]) -> list[int]:
    return [label for batch in batches for label in batch]


def make(split: Split, batch_size: int = 8, **options: Any) -> Batches:
    return make_batches(split, 4, batch_size, CPU, **{'train': True, 'workers': 0, **options})


MODES = pytest.mark.parametrize('options', [
    dict(mode='memory'), dict(mode='stream'), dict(mode='stream', workers=2)], ids=['memory', 'stream', 'workers'])


@MODES
def test_an_epoch_has_every_image_at_most_once(options: dict[str, Any]) -> None:
    batches = make(numbered(300), 64, **options)
    assert len(batches) == 4 and batches.num_images == 256 and not batches.streamed
    images, labels = epoch_of(batches)[0]
    assert images.shape == (64, 3, 4, 4) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    first, second = labels_of(batches, 0), labels_of(batches, 1)
    assert [len(batch) for batch in first] == [64] * 4
    assert len(set(flat(first))) == 256
    assert first != second and labels_of(batches, 0) == first


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    """In memory, streamed and streamed by workers; the same after other epochs, and whatever else drew numbers."""
    wanted = labels_of(make(numbered(50), mode='memory'), 3)
    torch.manual_seed(99)
    streamed = make(numbered(50), mode='stream', workers=2)
    labels_of(streamed, 7)
    assert labels_of(streamed, 3) == wanted
    assert labels_of(make(numbered(50), mode='memory', seed=1), 3) != wanted


@MODES
def test_balanced_batches_have_every_class_as_often(options: dict[str, Any]) -> None:
    """One image of ten is of class 1; an epoch is as long as before, another each time, and resumes in its middle."""
    labels = (torch.arange(2000) % 10 == 0).long()
    split = Split(numbered(2000).images, labels)
    batches = make(split, 100, balanced=True, seed=3, **options)
    first, second = (torch.cat([y for _, y in epoch_of(batches, epoch)]) for epoch in (0, 1))
    assert len(first) == 2000 and 900 < first.sum() < 1100 and not torch.equal(first, second)
    assert torch.equal(torch.cat([y for _, y in epoch_of(batches, 1, 5)]), second[500:])
    assert 0.05 < make(split, 2000, **options).__iter__().__next__()[1].double().mean() < 0.15


@MODES
def test_resumed_in_the_middle_of_an_epoch(options: dict[str, Any]) -> None:
    batches = make(numbered(50), **options)
    whole = labels_of(batches, 2)
    for start in range(len(whole) + 1):
        assert labels_of(batches, 2, start) == whole[start:]
    assert len(batches) == len(whole) == 6


@MODES
def test_an_epoch_that_was_left_early(options: dict[str, Any]) -> None:
    """What the workers had ready for it does not come up in the next."""
    batches = make(numbered(80), **options)
    wanted = labels_of(batches, 1)
    batches.set_epoch(0)
    next(iter(batches))
    assert labels_of(batches, 1) == wanted


@pytest.mark.parametrize('options', [dict(mode='memory'), dict(mode='stream')])
@pytest.mark.parametrize('world_size', [2, 4])
def test_processes_share_each_batch(world_size: int, options: dict[str, Any]) -> None:
    alone = labels_of(make(numbered(50), **options), 5)
    shared = [labels_of(make(numbered(50), rank=rank, world_size=world_size, **options), 5)
              for rank in range(world_size)]
    for i, batch in enumerate(alone):
        parts = [process[i] for process in shared]
        assert [len(part) for part in parts] == [8 // world_size] * world_size
        assert sorted(flat(parts)) == sorted(batch)


@pytest.mark.parametrize('options', [dict(mode='memory'), dict(mode='stream')])
@pytest.mark.parametrize('count, world_size', [(50, 1), (48, 2), (49, 4), (51, 4), (3, 4), (1, 2)])
def test_evaluation_counts_every_image_once(count: int, world_size: int, options: dict[str, Any]) -> None:
    ranks = [make(numbered(count), train=False, rank=rank, world_size=world_size, **options)
             for rank in range(world_size)]
    found = [labels_of(batches) for batches in ranks]
    assert sorted(label for process in found for label in flat(process)) == list(range(count))
    assert all(len(batches) == len(part) for batches, part in zip(ranks, found, strict=True))
    assert all(len(batch) for process in found for batch in process)
    assert all(batches.num_images == count for batches in ranks)
    if world_size == 1:
        assert flat(found[0]) == list(range(count))  # in order


@pytest.mark.parametrize('count, world_size, size', [(5, 1, 5), (5, 2, 4), (7, 4, 4)])
def test_a_set_smaller_than_a_batch_is_one_batch(
        count: int, world_size: int, size: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ranks = [make(numbered(count), 8, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert caplog.messages == [f'{count} training images are less than a batch: an epoch is one batch of {size}.']
    assert [len(batch) for batches in ranks for batch in labels_of(batches)] == [size // world_size] * world_size
    assert all(len(batches) == 1 and batches.num_images == size for batches in ranks)


@pytest.mark.parametrize('options, message', [
    (dict(world_size=3), 'multiple of the 3 processes'),
    (dict(batch_size=0), 'batch_size is 0'),
    (dict(rank=2, world_size=2), 'rank is 2, expected 0 to 1'),
    (dict(world_size=8, split=numbered(5)), 'too few for 8'),
    (dict(mode='steam'), 'Did you mean stream'),
    (dict(channels=4), 'channels is 4'),
])
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        make(**{'split': numbered(20), **options})


def test_start_batch_beyond_the_epoch() -> None:
    with pytest.raises(ZooError, match='start_batch is 7, expected 0 to 6'):
        make(numbered(50)).set_epoch(0, 7)


def test_parts_of_a_set() -> None:
    """The batches of a split that was cut have its images."""
    part = numbered(60).select(torch.arange(60) % 3 == 0)
    for mode in ('memory', 'stream'):
        assert flat(labels_of(make(part, train=False, mode=mode))) == list(range(0, 60, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@MODES
def test_batches_are_on_the_device(options: dict[str, Any]) -> None:
    batches = make_batches(numbered(50), 4, 8, 'cuda', train=True, **{'workers': 0, **options})
    assert all(images.is_cuda and labels.is_cuda for images, labels in epoch_of(batches, 5))
    assert labels_of(batches, 5) == labels_of(make(numbered(50)), 5)


def noisy(image: Image.Image) -> Tensor:
    """Draws from every generator that timm's and torchvision's transforms draw from."""
    noise = random.random() + np.random.rand() + torch.rand(3, 4, 4)
    return v2.functional.pil_to_tensor(image).float() + noise


@pytest.mark.parametrize('workers', [0, 2])
def test_augmentation_depends_on_seed_epoch_and_image_alone(workers: int) -> None:
    def run(start: int = 0, **options: Any) -> list[Tensor]:
        batches = make(numbered(40), mode='stream', stream_transform=noisy, **options)
        assert batches.streamed
        return [images for images, _ in epoch_of(batches, 3, start)]

    whole = run()
    assert whole[0].dtype == torch.float32
    for a, b in zip(run(2, workers=workers), whole[2:], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(run(seed=1)[0], whole[0])
    noise = (torch.cat(whole) % 1).flatten(1)
    assert len(noise.unique(dim=0)) == len(noise)  # no two images get the same


def test_streaming_leaves_the_callers_random_numbers_alone() -> None:
    """A resumed run goes on with the numbers of one that was not cut off."""
    def state() -> tuple[Any, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    def restart() -> None:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)

    restart()
    wanted = state()
    restart()
    for workers in (0, 1):
        epoch_of(make(numbered(16), mode='stream', stream_transform=noisy, workers=workers))
    assert state() == wanted


def test_streamed_evaluation_is_timms(tmp_path: Path) -> None:
    """Our stream under timm's evaluation transform gives what timm's own loader gives."""
    root = fakes.image_folder(tmp_path / 'set', {'a': 5, 'b': 6}, 40, 'jpg')
    shape = dict(input_size=(3, 32, 32), crop_pct=0.9, interpolation='bicubic')
    theirs = create_loader(ImageDataset(str(root)), batch_size=4, num_workers=0, use_prefetcher=False, **shape)
    split = Split(FileImages(root, sorted(str(p.relative_to(root)) for p in root.rglob('*.jpg'))),
                  torch.tensor([0] * 5 + [1] * 6))
    ours = make_batches(split, 32, 4, CPU, train=False, mode='stream', workers=0,
                        stream_transform=create_transform(is_training=False, **shape))
    for (a, b), (x, y) in zip(ours, theirs, strict=True):
        assert torch.equal(a, x) and b.tolist() == y.tolist()


def test_timms_training_transform_streams_reproducibly(tmp_path: Path) -> None:
    fakes.image_folder(tmp_path / 'set', {'a': 10, 'b': 10}, 40, 'jpg')
    augment = create_transform(32, is_training=True, auto_augment='rand-m6-inc1', re_prob=0.5, re_mode='pixel')
    split = open_source(f'folder:{tmp_path / "set"}').train

    def run(workers: int, start: int) -> list[Tensor]:
        batches = make_batches(split, 32, 4, CPU, train=True, mode='stream', stream_transform=augment, workers=workers)
        return [images for images, _ in epoch_of(batches, 1, start)]

    assert all(torch.equal(a, b) for a, b in zip(run(2, 1), run(0, 0)[1:], strict=True))


def test_what_workers_are_given_can_be_sent_to_them(tmp_path: Path) -> None:
    """Where a platform does not fork, the images and the transform are pickled."""
    for split in (numbered(10), folder_split(tmp_path / 'set')):
        transform = create_transform(4, is_training=True, auto_augment='rand-m6-inc1')
        samples = loaders._Samples(split, (4, 4), 3, 0, transform)
        again = pickle.loads(pickle.dumps(samples))
        for i in range(10):
            assert torch.equal(again[1, i][0], samples[1, i][0])


def dies(image: Image.Image) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def complains(image: Image.Image) -> Tensor:
    raise RuntimeError('a mistake in the transform')


def test_a_worker_that_is_killed_is_an_error() -> None:
    with pytest.raises(ZooError, match='A process that loads images died'):
        epoch_of(make(numbered(40), mode='stream', stream_transform=dies, workers=2))


def unsent(image: Image.Image) -> Tensor:
    def fail(*_: object) -> None:
        raise OSError(24, 'Too many open files')
    ForkingPickler.dumps = fail  # type: ignore[assignment,method-assign]
    return torch.zeros(3, 4, 4)


def test_a_signal_while_workers_end_is_not_lost(
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """They may end when garbage is collected, where an exception is printed and dropped."""
    batches: Any = make(numbered(40), mode='stream', workers=1)
    epoch_of(batches)
    shutdown = loaders._MultiProcessingDataLoaderIter._shutdown_workers

    def interrupted(self: Any) -> None:
        shutdown(self)
        if ending.pop():
            raise KeyboardInterrupt

    ending = [False, True]
    monkeypatch.setattr(loaders._MultiProcessingDataLoaderIter, '_shutdown_workers', interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)   # else it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            del batches
            gc.collect()
            time.sleep(20)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not capfd.readouterr().err


def test_a_worker_that_cannot_send_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZooError, match='A process that loads images died'):
        epoch_of(make(numbered(40), mode='stream', stream_transform=unsent, workers=1))
    assert capfd.readouterr().err == ''


def test_workers_that_cannot_be_started_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was begun of them is no traceback as it is dropped."""
    def fail(*_: object) -> None:
        raise OSError(24, 'Too many open files')
    unraised: list[object] = []
    monkeypatch.setattr(sys, 'unraisablehook', unraised.append)
    monkeypatch.setattr('torch.utils.data._utils.signal_handling._set_worker_pids', fail)
    with pytest.raises(ZooError, match=r'cannot be started \(Too many open files\): use fewer --workers, or 0'):
        epoch_of(make(numbered(40), mode='stream', workers=2))
    gc.collect()
    assert not unraised and not multiprocessing.active_children()


@pytest.mark.parametrize('text', ['Too many open files. Communication with the workers is no longer possible.',
                                  'Caught RuntimeError in DataLoader worker process 0. Too many open files (24)'])
def test_too_few_files_are_an_error_of_one_line(text: str) -> None:
    with pytest.raises(ZooError, match=r'cannot be started \(Too many open files\)'), loaders._naming_dead_workers():
        raise RuntimeError(text)


def test_a_worker_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, '_TIMEOUT', 0.5)
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.2)    # how long the end is waited for

    def hangs(image: Image.Image) -> Tensor:
        signal.pause()
        raise AssertionError

    with pytest.raises(ZooError, match='died, hangs'):
        epoch_of(make(numbered(40), mode='stream', stream_transform=hangs, workers=1))


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_in_the_transform_keeps_its_kind(workers: int) -> None:
    with pytest.raises(RuntimeError, match='a mistake in the transform') as caught:
        epoch_of(make(numbered(40), mode='stream', stream_transform=complains, workers=workers))
    assert not isinstance(caught.value, ZooError)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_file_that_vanished_is_named_in_one_line(workers: int, tmp_path: Path) -> None:
    root = fakes.image_folder(tmp_path / 'set', {'a': 5, 'b': 5})
    split = open_source(f'folder:{root}').train
    batches = make(split, 4, mode='stream', workers=workers)
    for path in root.rglob('*.png'):
        path.unlink()
    with pytest.raises(ZooError) as caught:
        epoch_of(batches)
    assert str(root) in str(caught.value) and 'can no longer be read' in str(caught.value)
    assert r'\n' not in str(caught.value) and str(caught.value).endswith('fix it and resume.')


def test_memory_and_stream_give_the_same_pixels(tmp_path: Path) -> None:
    for name in ('a', 'b'):
        for i, shape in enumerate([(8, 8, 3), (9, 30, 3), (50, 7, 3), (11, 11)] * 2):
            (tmp_path / 'set' / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(fakes.pixels(*shape)).save(tmp_path / 'set' / name / f'{i}.png')
    split = open_source(f'folder:{tmp_path / "set"}').train
    for channels, size in ((3, (8, 8)), (1, (12, 10))):
        memory, stream = (make_batches(split, size, 5, CPU, train=True, channels=channels, mode=mode, workers=0)
                          for mode in ('memory', 'stream'))
        for (a, b), (x, y) in zip(memory, stream, strict=True):
            assert a.shape == (5, channels, *size) and torch.equal(a, x) and torch.equal(b, y)


def spoil(root: Path) -> list[str]:
    """Four files that cannot be read, each in its own way."""
    whole = io.BytesIO()
    Image.fromarray(fakes.pixels(64, 64, 3)).save(whole, 'JPEG')
    (root / 'a' / 'empty.jpg').write_bytes(b'')
    (root / 'a' / 'short.jpg').write_bytes(whole.getvalue()[:2000])
    (root / 'b' / 'text.png').write_text('not an image')
    (root / 'b' / 'lost.png').symlink_to(root / 'nowhere')
    return ['a/empty.jpg', 'a/short.jpg', 'b/text.png', 'b/lost.png']


@pytest.mark.parametrize('mode', ['memory', 'stream'])
def test_unreadable_images_are_listed_before_the_first_batch(mode: str, tmp_path: Path) -> None:
    root = fakes.image_folder(tmp_path / 'set', {'a': 10, 'b': 10})
    names = spoil(root)
    split = open_source(f'folder:{root}').train
    for _ in range(2):  # a failure is not taken for a pass the second time
        with pytest.raises(ZooError) as caught:
            make(split, mode=mode)
        text = str(caught.value)
        assert text.startswith('4 of 24 images cannot be read') and '\n' not in text
        assert all(name in text for name in names)
    for name in names:
        (root / name).unlink()
    assert len(make(open_source(f'folder:{root}').train, mode=mode)) == 2


@pytest.mark.parametrize('size, free, expected', [
    (4, 4 * 20 * 48, True), (4, 4 * 20 * 48 - 1, False), (96, 2 ** 40, True), (97, 2 ** 40, False)])
def test_memory_is_chosen_by_size(size: int, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, 'free_memory', lambda _: free)
    batches = make_batches(numbered(20), size, 5, CPU, train=True, stream_transform=noisy, workers=0)
    assert batches.streamed is not expected


def test_a_part_of_a_folder_counts_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its files are decoded together."""
    split = folder_split(tmp_path / 'set')
    assert len(split) == 16 and len(split.images) == 20
    for free, expected in ((4 * 20 * 48, True), (4 * 18 * 48, False)):
        monkeypatch.setattr(loaders, 'free_memory', lambda _, free=free: free)
        assert loaders.fits_in_memory(split, (4, 4), 3, CPU) is expected


def test_free_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 ** 26 < loaders.free_memory() < 2 ** 46
    monkeypatch.setattr(Path, 'read_text', lambda self: 'no such line')
    assert 2 ** 26 < loaders.free_memory() < 2 ** 46


def masked(image: Image.Image) -> Tensor:
    return torch.tensor([number in signal.pthread_sigmask(signal.SIG_BLOCK, []) for number in (
        signal.SIGINT, signal.SIGTERM)])


@pytest.mark.skipif(not hasattr(signal, 'pthread_sigmask'), reason='needs signal masks')
def test_workers_take_no_signals_that_are_sent_to_the_group() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    images = next(iter(make(numbered(40), mode='stream', stream_transform=masked, workers=1)))[0]
    assert images.all() and not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGTERM, signal.SIGINT}
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_worker_killed_while_the_model_computes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised where the next images are asked for, and nowhere else."""
    monkeypatch.setattr(loaders, '_LOOK_EVERY', 0.2)
    batches: Any = make(numbered(400), mode='stream', stream_transform=masked, workers=2)
    steps = iter(batches)
    next(steps)
    os.kill(batches._loader._iterator._workers[0].pid, signal.SIGKILL)
    time.sleep(0.3)     # the computation
    with pytest.raises(ZooError, match='A process that loads images died'):
        list(steps)
