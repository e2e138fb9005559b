"""Images of 16 bits, and of other channels than grey and RGB: from arrays and files to predictions and exports."""
from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import tinyvit_zoo as zoo
from tinyvit_zoo import ZooError
from tinyvit_zoo.augment.batched import Augment, normalize
from tinyvit_zoo.augment.spec import AugmentSpec
from tinyvit_zoo.augment.views import Views
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.data.channels import read_deep
from tinyvit_zoo.data.images import DeepImages, FileImages, check_cached, decode
from tinyvit_zoo.data.sources import normalization, open_source

SMALL: dict[str, Any] = dict(
    epochs=1, batch_size=16, warmup_epochs=0, img_size=16, precision='fp32', device='cpu', model_args={'depth': 2})


def stacks(count: int, channels: int = 5, dtype: Any = np.uint16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 20, 18, C] whose two classes differ by less than 8 bits can show, in the last channel."""
    draws = np.random.RandomState(seed)
    labels = np.arange(count) % 2
    images = draws.randint(0, 20, (count, 20, 18, channels)) + 1000 * (dtype == np.uint16)
    images[..., -1] += 100 * labels[:, None, None]
    return images.astype(dtype), labels


DATA = {'train': stacks(48), 'test': stacks(12, seed=1)}


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return len(DATA['test'][0])

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        images, labels = DATA['test']
        return images[i], int(labels[i])


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> zoo.Classifier:
    """From the shipped weights of three channels."""
    simple = dict(epochs=6, eval_every=6, batch_size=8, mixup=0., cutmix=0., erase=0., crop_scale=None, smoothing=0.,
                  crop_pct=0.8)
    folder = tmp_path_factory.mktemp('deep') / 'run'
    return zoo.train('cct_2_3x2.c10', DATA, output=folder, **{**SMALL, **simple})


def test_five_channels_of_16_bits(run: zoo.Classifier, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The classes differ by what a cut to 8 bits would lose; the weights know channels, mean and deviation."""
    test = run.result['figures']['test']
    assert test['top1'] == 100
    cfg = run.model.pretrained_cfg
    assert tuple(cfg['input_size']) == (5, 16, 16) and len(cfg['mean']) == 5 and cfg['crop_pct'] == 0.8
    pixels = DATA['train'][0] / 65535
    assert cfg['mean'] == pytest.approx(pixels.mean((0, 1, 2)), rel=0.02) and max(cfg['std']) < 0.01
    again = zoo.load(run.folder)
    assert again.evaluate(DATA).scalars() == pytest.approx(test, rel=1e-4)
    images, labels = DATA['test']
    for form in (images, list(images), images.transpose(0, 3, 1, 2)):
        assert [found.indices[0] for found in again.predict(form)] == labels.tolist()
    assert again.predict(images[1])[0].indices[0] == labels[1]
    assert len(again.show(tmp_path)) == 4
    assert again.evaluate(Pairs()).top1 == 100
    recipe = json.loads((run.folder / 'recipe.json').read_text())['recipe']
    assert recipe['auto_augment'] == '' and recipe['flip'] > 0
    model = timm.create_model('cct_2_3x2', pretrained=True, depth=2, in_chans=5, pretrained_cfg_overlay=dict(
        file=str(run.folder / 'weights.safetensors')))
    assert model(torch.zeros(1, 5, 16, 16)).shape == (1, 2) and 'in_chans=5' in (run.folder / 'card.md').read_text()
    for bad, message in ((images[..., :3], 'it has 3 channels, expected 5'),
                         (np.zeros((9, 9, 3), np.uint8), 'grey or RGB, expected 5 channels')):
        with pytest.raises(ZooError, match=message):
            again.predict(bad[:1] if bad.ndim == 4 else bad)
    with pytest.raises(ZooError, match='takes images of 5 channels'):
        again.evaluate({'train': stacks(8, 3), 'test': stacks(8, 3)})


def test_files_of_pages_and_16_bits(run: zoo.Classifier, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TIFFs of a page for each channel; 16-bit PNGs, which are repeated to three channels and keep their depth."""
    images, labels = DATA['train']
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for kind in ('stacks', 'grey'):
            (tmp_path / kind / 'ab'[label]).mkdir(parents=True, exist_ok=True)
        pages = [Image.fromarray(np.ascontiguousarray(page)) for page in image.transpose(2, 0, 1)]
        pages[0].save(tmp_path / 'stacks' / 'ab'[label] / f'{i}.tif', save_all=True, append_images=pages[1:])
        pages[-1].save(tmp_path / 'grey' / 'ab'[label] / f'{i}.png')
    source = open_source(tmp_path / 'stacks')
    assert source.channels == 5 and source.train.images.deep
    assert int(decode(source.train.images, (20, 18), 5).max()) == images.max()
    assert main(['eval', str(run.folder), '--data', f'folder:{tmp_path / "stacks"}', '--mistakes',
                 str(tmp_path / 'm.png')]) == 0
    assert 'top-1     100.00' in capsys.readouterr().out
    for name, label in (('0.tif', 'a'), ('1.tif', 'b')):
        assert run.predict(tmp_path / 'stacks' / label / name)[0].indices[0] == 'ab'.index(label)
    assert main(['analyze', 'maps', str(run.folder), '--files', str(tmp_path / 'stacks' / 'a' / '0.tif'), '--output',
                 str(tmp_path / 'maps')]) == 0
    assert main(['eval', str(run.folder), '--data', f'folder:{tmp_path / "stacks"}', '--attack', 'fgsm']) == 2
    grey = open_source(tmp_path / 'grey')
    pixels = decode(grey.train.images, (20, 18), grey.channels)
    assert pixels.dtype == torch.int32 and pixels.shape[1] == 3 and int(pixels.max()) == images[..., -1].max()
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    Image.fromarray(images[0, ..., 0]).save(tmp_path / 'stacks' / 'a' / '0.tif')
    with pytest.raises(ZooError, match=r'has 1 channels of 16 bits|cannot be read'):
        decode(open_source(tmp_path / 'stacks').train.images, (20, 18), 5)


def test_tiffs_that_pillow_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels in one page, 16 bits of colour and floats give the pixels that were written; without tifffile a line."""
    tifffile = pytest.importorskip('tifffile')
    draws = np.random.RandomState(0)
    colour, floats = draws.randint(0, 65536, (4, 5, 3)).astype(np.uint16), draws.rand(4, 4, 5).astype(np.float32)
    stack = draws.randint(0, 256, (4, 5, 6)).astype(np.uint8)
    written = {
        'colour': (colour, {'photometric': 'rgb'}),
        'stack': (stack, {'photometric': 'minisblack', 'planarconfig': 'contig'}),
        'floats': (floats, {'photometric': 'minisblack', 'planarconfig': 'separate'}),
        'infrared': (stack[..., :4], {'photometric': 'rgb', 'extrasamples': ['unspecified']}),
        'stains': (stack[..., :2], {'photometric': 'minisblack', 'planarconfig': 'contig'}),
        'alpha': (np.dstack([colour, colour[..., 0]]), {'photometric': 'rgb', 'extrasamples': ['unassalpha']})}
    planar = colour.transpose(2, 0, 1)
    expected = {'colour': planar, 'stack': stack.transpose(2, 0, 1), 'floats': (floats.astype(float) * 65535).round(),
                'infrared': stack[..., :4].transpose(2, 0, 1), 'stains': stack[..., :2].transpose(2, 0, 1),
                'alpha': planar}
    for name, (pixels, options) in written.items():
        tifffile.imwrite(tmp_path / f'{name}.tif', pixels, **options)
        found = read_deep(tmp_path / f'{name}.tif')
        assert found is not None and np.array_equal(found, expected[name].astype(int)), name
    content = (tmp_path / 'stack.tif').read_bytes()
    (tmp_path / 'cut.tif').write_bytes(content[:-50])
    tifffile.imwrite(tmp_path / 'wide.tif', floats * 300, photometric='minisblack', planarconfig='separate')
    for name, message in (('cut', 'failed|bytes|index'), ('wide', 'expected 0 to 1')):
        with pytest.raises(Exception, match=message):
            read_deep(tmp_path / f'{name}.tif')
    tifffile.imwrite(tmp_path / 'opaque.tif', stack[..., :4], photometric='rgb', extrasamples=['unassalpha'])
    assert read_deep(tmp_path / 'opaque.tif') is None       # as Pillow reads it
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    for name in ('stack', 'colour', 'infrared', 'stains'):
        with pytest.raises(ValueError, match=r"pip install 'tinyvit-zoo\[tiff\]'"):
            read_deep(tmp_path / f'{name}.tif')


def test_pages_out_of_range_are_named_with_their_values(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 4), value, np.float32)) for value in (.5, 300)]
    for label in 'ab':
        (tmp_path / label).mkdir()
        for i in range(5):
            pages[0].save(tmp_path / label / f'{i}.tif', save_all=True, append_images=pages[1:])
    with pytest.raises(ZooError, match=r'floating-point pixels go from 300 to 300, expected 0 to 1'):
        decode(open_source(tmp_path).train.images, (4, 4), 3)


def test_augmentation_keeps_16_bits() -> None:
    """Crops and flips equal those of 8 bits, but for the rounding."""
    draws = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 256, (6, 4, 12, 12), generator=draws, dtype=torch.int32)
    spec = AugmentSpec((8, 8), (0.4,) * 4, (0.2,) * 4, flip=0.5, crop_scale=(0.3, 1.), erase=0.5, erase_mode='const')
    for each in (spec, AugmentSpec((12, 12), (0.4,) * 4, (0.2,) * 4, flip=0.5, crop_padding=2)):
        found, expected = (Augment(each)(x, torch.Generator().manual_seed(1)) for x in (wide * 257, wide.byte()))
        assert torch.allclose(found, expected, atol=1.5 / 255 / 0.2)
    assert torch.allclose(normalize(wide * 257, (0.4,) * 4, (0.2,) * 4), normalize(wide.byte(), (0.4,) * 4, (0.2,) * 4))
    fine = Augment(AugmentSpec((12, 12), (0.,) * 4, (1.,) * 4))(wide + 1000, draws) * 65535
    assert torch.allclose(fine, wide + 1000., atol=0.01)


def test_eight_bits_of_two_channels(tmp_path: Path) -> None:
    arrays = {f'{name}_{what}': value for name, count in (('train', 24), ('test', 8))
              for what, value in zip(('images', 'labels'), stacks(count, 2, np.uint8), strict=True)}
    np.savez(tmp_path / 'a.npz', **arrays)
    source = open_source(tmp_path / 'a.npz')
    assert source.train.images.dtype == torch.uint8 and len(normalization(source, 16)[0]) == 2
    run = zoo.train('cct_2_3x2', f'npz:{tmp_path / "a.npz"}', output=tmp_path / 'run', from_weights='', layer_decay=1.,
                    loader='stream', workers=0, **SMALL)
    assert run.model.in_chans == 2
    for keywords, message in (({'auto_augment': 'cifar10'}, 'auto_augment needs'), ({'teacher': 'x'}, 'a teacher ')):
        with pytest.raises(ZooError, match=message):
            zoo.train('cct_2_3x2', f'npz:{tmp_path / "a.npz"}', output=tmp_path / 'b', **{**SMALL, **keywords})
    with pytest.raises(ZooError, match='as a teacher needs'):
        zoo.pretrain('d_mae', tmp_path / 'a.npz', model='mae_vit_c10', teacher='mae_vit_c10', output=tmp_path / 'b')


def test_pretraining_on_16_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Views without colours; the encoder knows its channels, and a training from it goes on with them."""
    options: dict[str, Any] = {**SMALL, 'model_args': {'depth': 1}}
    encoder = zoo.pretrain('moco_v3', DATA, model='cct_2_3x2', output=tmp_path / 'encoder',
                           method_args={'hidden_dim': 16, 'dim': 8}, **options)
    assert 'trained without colour and blur augmentation' in capsys.readouterr().out
    assert zoo.load(encoder.folder).model.in_chans == 5
    run = zoo.train('cct_2_3x2', DATA, output=tmp_path / 'run', start=encoder, **options)
    assert tuple(run.model.pretrained_cfg['input_size']) == (5, 16, 16)
    with pytest.raises(ZooError, match=r'takes images of 5 channels, and .* has 3'):
        zoo.train('cct_2_3x2', (DATA['train'][0][..., :3], DATA['train'][1]), output=tmp_path / 'b', start=encoder,
                  **options)
    assert not (tmp_path / 'b').exists()


def test_files_of_other_depths_are_checked_again(tmp_path: Path) -> None:
    """RGB files that passed as such are no images of five pages."""
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    images = FileImages(tmp_path, ['a.png'])
    check_cached(images)
    with pytest.raises(ZooError, match='1 of 1 images cannot be read'):
        check_cached(DeepImages(images, 5, torch.uint8))


def test_views_of_16_bits_equal_those_without_colours() -> None:
    wide = torch.randint(0, 256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    spec = AugmentSpec((16, 16), (0.5,) * 3, (0.2,) * 3, flip=0.5, crop_scale=(0.3, 1.))
    plain = Views([(2, spec)], [(3, spec)])(wide.byte(), torch.Generator().manual_seed(1))
    found = Views([(2, replace(spec, solarize=1., grey=1.))], [(3, replace(spec, blur=1.))])(
        wide * 257, torch.Generator().manual_seed(1))
    assert [tuple(x.shape) for x in found] == [(2, 4, 3, 16, 16), (3, 4, 3, 16, 16)]
    assert all(torch.allclose(*pair, atol=1.5 / 255 / 0.2) for pair in zip(found, plain, strict=True))
