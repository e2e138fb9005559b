"""Batches: the same images at the same time from memory and streamed, in one process and in several, resumed or not."""
import io
import logging
import os
import pickle
import random
import signal
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader, create_transform
from torch import Tensor
from torchvision.transforms import v2

from tinyvit_zoo.data import batches as loaders, cache
from tinyvit_zoo.data.batches import Batches, make_batches
from tinyvit_zoo.data.images import ArrayImages, FileImages, as_channels, check_all, decode, fit
from tinyvit_zoo.data.seeds import derived, seeded
from tinyvit_zoo.data.sources import open_source
from tinyvit_zoo.data.splits import Split
from tinyvit_zoo.errors import ZooError

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'images'


def numbered(count: int) -> Split:
    """4x4 images; the label of each is its number, and so are its pixels, in two of the channels."""
    number = torch.arange(count)
    pixels = torch.stack([number // 256, number % 256, number * 0], -1).to(torch.uint8)
    return Split(ArrayImages(pixels[:, None, None].expand(-1, 4, 4, 3), 'numbered'), number)


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


# --- which images come when ---

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


@MODES
@pytest.mark.parametrize('world_size', [2, 4])
def test_processes_share_each_batch(world_size: int, options: dict[str, Any]) -> None:
    alone = labels_of(make(numbered(50), **options), 5)
    shared = [labels_of(make(numbered(50), rank=rank, world_size=world_size, **options), 5)
              for rank in range(world_size)]
    for i, batch in enumerate(alone):
        parts = [process[i] for process in shared]
        assert [len(part) for part in parts] == [8 // world_size] * world_size
        assert sorted(flat(parts)) == sorted(batch)


@MODES
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
    assert caplog.messages == [f'{count} training images are fewer than a batch: an epoch is one batch of {size}.']
    assert [len(batch) for batches in ranks for batch in labels_of(batches)] == [size // world_size] * world_size
    assert all(len(batches) == 1 and batches.num_images == size for batches in ranks)


@pytest.mark.parametrize('options, message', [
    (dict(world_size=3), 'multiple of the 3 processes'),
    (dict(batch_size=0), 'batch_size is 0'),
    (dict(rank=2, world_size=2), 'rank is 2, expected 0 to 1'),
    (dict(world_size=8, split=numbered(5)), 'cannot be shared among 8'),
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


# --- streaming ---

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


def test_seeded_draws_repeat_and_differ() -> None:
    drawn = []
    for numbers in ((1, 2), (1, 2), (2, 1), (1, 3), (-1, 2)):
        with seeded(*numbers):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4
    assert len({derived(0, i) for i in range(1000)}) == 1000


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


def test_a_worker_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, '_TIMEOUT', 1)

    def hangs(image: Image.Image) -> Tensor:
        signal.pause()
        raise AssertionError

    with pytest.raises(ZooError, match='died or hangs'):
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
    assert str(root) in str(caught.value) and 'cannot be read any more' in str(caught.value)
    assert '\n' not in str(caught.value) and str(caught.value).endswith('mend it and resume.')


# --- from files to pixels ---

def png(image: Image.Image, **options: Any) -> FileImages:
    class One(FileImages):
        def open(self, i: int) -> Any:
            buffer = io.BytesIO()
            image.save(buffer, options.pop('format', 'PNG'), **options)
            return buffer

    return One(Path(), ['one'])


def test_grey_and_colour() -> None:
    """The fast way for arrays gives what Pillow gives, to the bit."""
    colour = ArrayImages(torch.from_numpy(fakes.pixels(50, 8, 8, 3)), 'x')
    by_pillow = np.stack([np.asarray(colour.read(i).convert('L')) for i in range(50)])
    assert (decode(colour, (8, 8), 1)[:, 0].numpy() == by_pillow).all()
    grey = ArrayImages(torch.from_numpy(fakes.pixels(50, 8, 8)), 'x')
    assert (decode(grey, (8, 8), 3) == grey.pixels[:, None]).all()


def test_the_rule_of_size() -> None:
    """Identity where it fits; else filled and cut in the middle."""
    image = Image.fromarray(fakes.pixels(10, 20, 3))
    assert fit(image, (10, 20)) is image
    assert np.array_equal(fit(image, (10, 10)), np.asarray(image)[:, 5:15])
    for size in (30, 4):
        filled = image.resize((2 * size, size), Image.Resampling.BICUBIC)
        assert np.array_equal(fit(image, (size, size)), np.asarray(filled)[:, size // 2:size // 2 + size])
    assert fit(image, (7, 9)).size == (9, 7)


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


def test_sixteen_bits_are_scaled() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert np.asarray(png(Image.fromarray(values)).read(0)).tolist() == [[0, 0, 1, 128, 255]]


def test_palettes_alpha_and_other_modes() -> None:
    colour = Image.fromarray(fakes.pixels(4, 4, 3))
    palette = colour.quantize(16)
    assert np.array_equal(png(palette).read(0), palette.convert('RGB'))
    assert np.array_equal(png(palette, transparency=3).read(0), palette.convert('RGB'))
    clear = colour.copy()
    clear.putalpha(7)
    assert np.array_equal(png(clear).read(0), colour)
    grey = colour.convert('L')
    assert np.array_equal(png(grey.convert('LA')).read(0), grey)
    bits = grey.convert('1')
    assert np.array_equal(png(bits).read(0), bits.convert('L'))
    assert png(colour.convert('CMYK'), format='TIFF').read(0).mode == 'RGB'
    with pytest.raises(ValueError, match='floating-point'):
        png(Image.fromarray(np.ones((2, 2), np.float32)), format='TIFF').read(0)


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    image = Image.fromarray(fakes.pixels(4, 6, 3))
    upright = png(image, exif=exif).read(0)
    assert upright.size == (4, 6)
    assert np.array_equal(upright, image.transpose(Image.Transpose.ROTATE_270))


def test_as_channels_copies_nothing_that_fits() -> None:
    image = Image.fromarray(fakes.pixels(4, 4, 3))
    assert as_channels(image, 3) is image and as_channels(image, 1).mode == 'L'


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


def test_ten_unreadable_images_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    root = fakes.image_folder(tmp_path / 'set', {'a': 300})
    for i in range(0, 300, 20):
        (root / 'a' / f'{i:03}.png').write_bytes(b'')
    with pytest.raises(ZooError, match=r'15 of 300 .*, and 5 more') as caught:
        check_all(FileImages(root, sorted(str(p.relative_to(root)) for p in root.rglob('*.png'))))
    assert str(caught.value).count('.png') == 10


# --- the cache ---

def folder_split(root: Path) -> Split:
    if not root.exists():
        fakes.image_folder(root, {'a': 10, 'b': 10})
    return open_source(f'folder:{root}').train


def pixels_in_memory(root: Path, size: int = 4) -> Tensor:
    return loaders.in_memory(folder_split(root), (size, size), 3)


def test_files_are_decoded_once(tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pixels_in_memory(tmp_path / 'set')
    assert len(list(cache_folder.iterdir())) == 1
    assert pixels_in_memory(tmp_path / 'set', 5).shape[-1] == 5  # another size is another entry
    monkeypatch.setattr(cache, 'decode', lambda *_, **__: pytest.fail('decoded again'))
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first)
    assert not [path for path in cache_folder.iterdir() if path.name.startswith('.')]


@pytest.mark.parametrize('change', [
    lambda root: Image.fromarray(fakes.pixels(8, 8, 3)).save(root / 'a' / '000.png'),
    lambda root: os.utime(root / 'a' / '000.png', ns=(1, 1)),
    lambda root: (root / 'a' / '000.png').rename(root / 'a' / '0000.png'),
    lambda root: (root / 'a' / '000.png').unlink(),
], ids=['content', 'time', 'name', 'removed'])
def test_a_changed_file_is_seen(change: Any, tmp_path: Path, cache_folder: Path) -> None:
    pixels_in_memory(tmp_path / 'set')
    change(tmp_path / 'set')
    again = pixels_in_memory(tmp_path / 'set')
    assert len(list(cache_folder.iterdir())) == 2
    split = folder_split(tmp_path / 'set')
    assert torch.equal(again, decode(split.images, (4, 4), 3, split.index))


@pytest.mark.parametrize('harm', [
    lambda data: data[:len(data) // 2],
    lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
    lambda data: b'',
    lambda data: b'x' * 100,
], ids=['short', 'one bit', 'empty', 'another file'])
def test_a_damaged_cache_is_made_again(
        harm: Any, tmp_path: Path, cache_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = pixels_in_memory(tmp_path / 'set')
    entry = next(cache_folder.iterdir())
    whole = entry.read_bytes()
    entry.write_bytes(harm(whole))
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first)
    assert 'are damaged' in caplog.text and entry.stat().st_size == len(whole)


def test_a_cache_of_another_shape_is_made_again(tmp_path: Path, cache_folder: Path) -> None:
    first = pixels_in_memory(tmp_path / 'set')
    np.savez(next(cache_folder.iterdir()), images=np.zeros((3, 3), np.uint8))
    assert torch.equal(pixels_in_memory(tmp_path / 'set'), first)


def test_a_cache_that_cannot_be_written_is_done_without(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / 'file').write_text('in the way')
    monkeypatch.setenv('TINYVIT_ZOO_CACHE', str(tmp_path / 'file'))
    assert len(pixels_in_memory(tmp_path / 'set')) == 16
    assert 'TINYVIT_ZOO_CACHE' in caplog.text


def test_the_check_before_streaming_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = folder_split(tmp_path / 'set')
    make(split, mode='stream')
    monkeypatch.setattr(cache, 'check_all', lambda *_: pytest.fail('checked again'))
    make(split, mode='stream')
    os.utime(tmp_path / 'set' / 'a' / '000.png', ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        make(split, mode='stream')


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('TINYVIT_ZOO_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', '/x')
    assert cache.cache_folder() == Path('/x/tinyvit_zoo/images')
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert cache.cache_folder() == Path.home() / '.cache/tinyvit_zoo/images'


# --- the choice, and what is shown ---

@pytest.mark.parametrize('size, free, expected', [
    (4, 4 * 20 * 48, True), (4, 4 * 20 * 48 - 1, False), (96, 2 ** 40, True), (97, 2 ** 40, False)])
def test_memory_is_chosen_by_size(size: int, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, '_free_memory', lambda: free)
    batches = make_batches(numbered(20), size, 5, CPU, train=True, stream_transform=noisy, workers=0)
    assert batches.streamed is not expected


def test_a_part_of_a_folder_counts_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its files are decoded together."""
    split = folder_split(tmp_path / 'set')
    assert len(split) == 16 and len(split.images) == 20
    for free, expected in ((4 * 20 * 48, True), (4 * 18 * 48, False)):
        monkeypatch.setattr(loaders, '_free_memory', lambda free=free: free)
        assert loaders.fits_in_memory(split, (4, 4), 3, CPU) is expected


def test_free_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2 ** 26 < loaders._free_memory() < 2 ** 46
    monkeypatch.setattr(Path, 'read_text', lambda self: 'no such line')
    assert 2 ** 26 < loaders._free_memory() < 2 ** 46


def test_arrays_are_not_copied_while_they_wait() -> None:
    """A split of a split looks into the one array."""
    split = numbered(100)
    part = split.select(torch.arange(50)).select(torch.arange(10, 20))
    assert part.images is split.images and part.index is not None and part.index.tolist() == list(range(10, 20))
