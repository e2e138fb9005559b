"""Weights load strictly from every source, and what is wrong with them is said in one line."""
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from parity import authors_state
from torch import nn

from tinyvit_zoo import ZooError, layers
from tinyvit_zoo.models.compact import checkpoint_filter_fn
from tinyvit_zoo.weights import catalogue, fetch, read_weights, save_weights
from tinyvit_zoo.weights.readout import read_readout

STATE = {name: tensor.float() for name, tensor in authors_state('cct_2_3x2', (32, 32), 3, 10).items()}


def load(path: Path | str, name: str = 'cct_2_3x2', **kwargs: Any) -> nn.Module:
    overlay = {'file': str(path), **kwargs.pop('overlay', {})}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert '\n' not in text
    return text


def expected_logits(x: torch.Tensor) -> torch.Tensor:
    model = timm.create_model('cct_2_3x2').eval()
    model.load_state_dict(checkpoint_filter_fn(STATE, model))
    return model(x)


WRAPPINGS = {
    'bare': lambda s: s,
    'module': lambda s: {f'module.{k}': v for k, v in s.items()},
    'state_dict': lambda s: {'state_dict': s, 'epoch': 3, 'arch': 'cct_2'},
    'model': lambda s: {'model': {f'module._orig_mod.{k}': v for k, v in s.items()}, 'epoch': 3},
    'model_ema': lambda s: {'model': {k: v * 0 for k, v in s.items()}, 'model_ema': s},
    'module of model_ema': lambda s: {'model_ema': {'module': s, 'decay': 0.9}},
}


@pytest.mark.parametrize('suffix', ['.pth', '.pth.zip', '.legacy.pth', '.safetensors'])
@pytest.mark.parametrize('wrapping', WRAPPINGS)
@torch.no_grad()
def test_every_format_and_wrapping(wrapping: str, suffix: str, tmp_path: Path) -> None:
    content, path = WRAPPINGS[wrapping](STATE), tmp_path / f'weights{suffix}'
    if suffix == '.safetensors':
        if wrapping not in ('bare', 'module'):
            pytest.skip('safetensors holds tensors by name and nothing else')
        save_weights(content, path)
    elif suffix == '.pth.zip':
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=False)
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('folder/weights.pth', buffer.getvalue())
            archive.writestr('folder/.DS_Store', b'what a file manager leaves')
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == '.pth')
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load(path)(x), expected_logits(x))


@torch.no_grad()
def test_url_and_package_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, '_SCHEMES', ('file',))
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    torch.save(STATE, tmp_path / 'there.pth')
    x = torch.randn(2, 3, 32, 32)
    model = timm.create_model(
        'cct_2_3x2', pretrained=True, pretrained_cfg_overlay=dict(url=(tmp_path / 'there.pth').as_uri())).eval()
    torch.testing.assert_close(model(x), expected_logits(x))


@torch.no_grad()
def test_saved_for_the_hub_and_back(tmp_path: Path) -> None:
    """timm's own export of an adapted model comes back through local-dir, numbers, size and classes."""
    model = timm.create_model('vit_lite_2_4', num_classes=4, img_size=(24, 40), in_chans=1).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    back = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = torch.randn(2, 1, 24, 40)
    torch.testing.assert_close(back(x), model(x))


@torch.no_grad()
def test_another_class_count_drops_the_head_and_nothing_else(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / 'w.pth')
    full, other = load(tmp_path / 'w.pth'), load(tmp_path / 'w.pth', num_classes=4)
    none, grey = load(tmp_path / 'w.pth', num_classes=0), load(tmp_path / 'w.pth', in_chans=1)
    for name, tensor in full.state_dict().items():
        if not name.startswith('head.'):
            torch.testing.assert_close(other.state_dict()[name], tensor)
            torch.testing.assert_close(none.state_dict()[name], tensor)
    stem = full.tokenizer.convs[0].weight
    torch.testing.assert_close(grey.tokenizer.convs[0].weight, stem.sum(1, keepdim=True))
    assert load(tmp_path / 'w.pth', features_only=True) is not None


def test_tables_resize_on_load(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / 'w.pth')
    learned = load(tmp_path / 'w.pth', img_size=(64, 32))
    expected = layers.resize_table(STATE['classifier.positional_emb'], (8, 8), (16, 8), 0)
    torch.testing.assert_close(learned.pos_embed.data, expected)

    sine = {**STATE, 'classifier.positional_emb': layers.sine_table(64, 128)}
    torch.save(sine, tmp_path / 'sine.pth')
    fixed = load(tmp_path / 'sine.pth', img_size=(64, 32), pos_embed='sine')
    torch.testing.assert_close(fixed.pos_embed, layers.sine_table(128, 128))

    kept = load(tmp_path / 'w.pth', pos_embed='sine')  # the authors' "sine" files hold learned tables: they are used
    torch.testing.assert_close(kept.pos_embed, STATE['classifier.positional_emb'])
    assert 'pos_embed' not in dict(kept.named_parameters())


def test_size_of_an_oblong_file(tmp_path: Path) -> None:
    """As many tokens as the model: taken as it is, unless the cfg says that it was made for another size."""
    state = authors_state('cct_2_3x2', (16, 64), 3, 10)
    torch.save(state, tmp_path / 'w.pth')
    same = load(tmp_path / 'w.pth', img_size=(16, 64))
    torch.testing.assert_close(same.pos_embed.data.double(), state['classifier.positional_emb'], atol=1e-6, rtol=0)
    told = load(tmp_path / 'w.pth', overlay=dict(input_size=(3, 16, 64)), img_size=32)
    assert told.pos_embed.shape == same.pos_embed.shape and not torch.equal(told.pos_embed, same.pos_embed)


@pytest.mark.parametrize('classes', [10, 4])
@pytest.mark.parametrize('change, words', [
    (lambda s: s.pop('classifier.norm.bias'), 'norm.bias is missing'),
    (lambda s: s.update(extra=torch.zeros(2)), 'extra is not part of it'),
    (lambda s: s.update({'classifier.norm.weight': torch.ones(5)}), r'norm.weight is \[5\], expected \[128\]'),
    (lambda s: s.update({'tokenizer.conv_layers.0.0.weight': torch.ones(64, 3, 7, 7)}), r'is \[64, 3, 7, 7\]'),
    (lambda s: s.update({'classifier.positional_emb': torch.ones(1, 7, 128)}), r'pos_embed is \[1, 7, 128\]'),
    (lambda s: s.update({'classifier.norm.weight': torch.ones(128).to(torch.int8)}), 'is of int8, expected floats'),
    (lambda s: s.update({'classifier.positional_emb': 1j * torch.ones(1, 64, 128)}), 'is complex'),
])
def test_tensors_that_do_not_fit_are_named(change: Any, words: str, classes: int, tmp_path: Path) -> None:
    state = dict(STATE)
    change(state)
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(ZooError, match=words) as error:
        load(tmp_path / 'w.pth', num_classes=classes)
    one_line(error)


def test_another_architecture_and_a_wrong_class_count(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / 'w.pth')
    with pytest.raises(ZooError, match=r'do not fit cct_7_3x1: .*missing.* and \d+ more') as error:
        load(tmp_path / 'w.pth', 'cct_7_3x1')
    one_line(error)
    with pytest.raises(ZooError, match=r'head.weight is \[10, 128\], expected \[100, 128\]'):
        load(tmp_path / 'w.pth', overlay=dict(num_classes=100))


class Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, (str(Path(os.environ['BOMB_TARGET'])),)


@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_and_not_run(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('BOMB_TARGET', str(tmp_path / 'boom'))
    torch.save({**STATE, 'bomb': Bomb()}, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(ZooError, match='is refused') as error:
        load(tmp_path / 'w.pth')
    one_line(error)
    assert not (tmp_path / 'boom').exists()


@pytest.mark.parametrize('cached', [False, True])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'empty', 'text'])
def test_damaged_files(
        suffix: str, damage: str, cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture) -> None:
    """Given as a file, or lying in the cache of what was once fetched from an address."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = tmp_path / 'hub' / 'checkpoints' / f'w{suffix}'
    path.parent.mkdir(parents=True)
    torch.save(STATE, path) if suffix == '.pth' else save_weights(STATE, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({'truncated': content[:5000], 'flipped': content, 'empty': b'', 'text': b'hello'}[damage])
    overlay = {'url': f'https://no.invalid/w{suffix}'} if cached else {'file': str(path)}
    with pytest.raises(ZooError, match='damaged') as error:
        timm.create_model('cct_2_3x2', pretrained=True, pretrained_cfg_overlay=overlay)
    assert str(path) in one_line(error) and not caplog.text


def test_a_file_of_before_loads_and_its_tensors_are_checked(tmp_path: Path) -> None:
    """It has a digest of the tensors, and none of the metadata, which are checked by value."""
    path = tmp_path / 'w.safetensors'
    save_weights(STATE, path, {'pretrained_cfg': '{"num_classes": 10, "std": [0.5, 0.5, 0.5]}'})
    with safetensors.safe_open(path, 'pt') as file:
        metadata = {key: text for key, text in file.metadata().items() if key != 'metadata_sha256'}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata)
    assert load(path).pretrained_cfg['std'] == [0.5, 0.5, 0.5]
    metadata['pretrained_cfg'] = '{"num_classes": 10, "std": [0.5, 0.5, -0.5]}'
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(ZooError, match=r'std is .* expected numbers from 1e-30'):
        load(path)
    safetensors.torch.save_file({**tensors, 'classifier.fc.bias': torch.ones(10)}, path, metadata)
    with pytest.raises(ZooError, match='is damaged'):
        load(path)


def test_classes_are_found_in_a_zip_and_the_old_format_is_named(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_weights(STATE, tmp_path / 'w.safetensors', {'pretrained_cfg': '{"num_classes": 10, "mean": [0.1, 0.1, 0.1]}'})
    with zipfile.ZipFile(tmp_path / 'w.zip', 'w') as archive:
        archive.write(tmp_path / 'w.safetensors', 'folder/w.safetensors')
    assert load(tmp_path / 'w.zip').pretrained_cfg['mean'] == [0.1, 0.1, 0.1] and not caplog.text
    torch.save(STATE, tmp_path / 'w.pth', _use_new_zipfile_serialization=False)
    load(tmp_path / 'w.pth')
    assert 'without a checksum' in caplog.text and 'with digests of all' in caplog.text


def test_a_checkpoint_without_tensors_is_said(tmp_path: Path) -> None:
    torch.save({'net': STATE, 'epoch': 3}, tmp_path / 'w.pth')
    with pytest.raises(ZooError, match='no tensors in the checkpoint, only net, epoch') as error:
        load(tmp_path / 'w.pth')
    one_line(error)


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'w.safetensors'
    save_weights(STATE, path, {'note': 'first'})
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(OSError(28, 'disk full')))
    with pytest.raises(ZooError, match='disk full'):
        save_weights({'a': torch.zeros(3)}, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['w.safetensors'] and len(read_weights(path)) == len(STATE)


def test_unknown_tag_names_the_nearest() -> None:
    with pytest.raises(ZooError, match='Did you mean shi_c10_300e') as error:
        timm.create_model('cct_7_3x1.shi_c10_30e')
    one_line(error)
    with pytest.raises(ZooError, match='no weights for cct_7_7x2 yet'):
        timm.create_model('cct_7_7x2', pretrained=True)


def test_no_network_says_what_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a weight behind a URL and one on the Hub fail fast, with the address and what to do."""
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    monkeypatch.setattr('socket.socket.connect', lambda *args: pytest.fail('connects'))
    for overlay, words in (({}, ('cct2-3x2_cifar10.pth.zip', 'dict(file=PATH)')),
                           ({'url': None, 'hf_hub_id': 'nobody/nothing'}, ('nobody/nothing',))):
        with pytest.raises(ZooError) as error:
            timm.create_model('cct_2_3x2.shi_c10_200e', pretrained=True, cache_dir=tmp_path,
                              pretrained_cfg_overlay=overlay)
        one_line(error)
        assert all(word in str(error.value) for word in (*words, str(tmp_path)))


def test_every_published_checkpoint_is_a_tag() -> None:
    """The catalogue holds the authors' files, each with its figure."""
    weights = catalogue()
    for name in ('cct_7_3x1.shi_c10_300e', 'cct_7_3x1.shi_c100_300e', 'cct_7_3x1_sine.shi_c10_5000e',
                 'cct_7_7x2_sine.shi_fl102', 'cct_14_7x2.shi_in1k_384', 'cct_6_3x1.shi_c100_500e'):
        assert weights[name].url.startswith('https://')
    assert all(w.published or w.encoder or w.ours for w in weights.values())
    cfg = timm.get_pretrained_cfg('cct_14_7x2.shi_in1k')
    assert (cfg.crop_pct, cfg.input_size, cfg.num_classes) == (0.9, (3, 224, 224), 1000)


def test_a_temperature_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    for text in ('{"temperature": 0}', '{"temperature": 1e-300}', '{"temperature": 1e9}', '{"temperature": true}',
                 '{"temperature": "x"}', '{"temperatures": 1}', '[]', 'no JSON'):
        save_weights({'a': torch.zeros(2)}, tmp_path / 'a.safetensors', {'readout': text})
        with pytest.raises(ZooError, match=r'a\.safetensors is damaged'):
            read_readout(tmp_path / 'a.safetensors')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_pipes_and_places_without_a_name_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe')
    for place in (tmp_path / 'pipe', ''):
        with pytest.raises(ZooError, match='no name of a file, or a device or pipe'):
            save_weights({'a': torch.zeros(2)}, place)
    assert (tmp_path / 'pipe').is_fifo()
