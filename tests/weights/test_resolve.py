"""A name, a file or a run directory resolves to one model; a mistake is one line before anything is loaded."""
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from tinyvit_zoo import ZooError
from tinyvit_zoo.weights import save_weights
from tinyvit_zoo.weights.resolve import Resolved, resolve, without_rates

CFG = {'num_classes': 4, 'input_size': [3, 16, 16], 'mean': [0.1, 0.2, 0.3], 'std': [0.5, 0.6, 0.7],
       'label_names': list('abcd')}
RECIPE = {'name': 'cct_2_3x2.mine', 'epochs': 3, 'cooldown_epochs': 1, 'img_size': 16,
          'model_args': {'pos_embed': 'sine', 'drop_path_rate': 0.1}}


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 classes."""
    folder = tmp_path_factory.mktemp('runs') / 'mine'
    folder.mkdir()
    tensors = timm.create_model('cct_2_3x2', num_classes=4, img_size=16).state_dict()
    metadata = {'pretrained_cfg': json.dumps(CFG), 'recipe': RECIPE['name']}
    save_weights(tensors, folder / 'weights.safetensors', metadata)
    (folder / 'recipe.json').write_text(json.dumps({'recipe': RECIPE}))
    return folder


@pytest.mark.parametrize('spec, name, has_weights', [
    ('cct_2_3x2', 'cct_2_3x2.c10', True), ('cct_2_3x2.digits', 'cct_2_3x2.digits', True),
    ('vit_lite', 'vit_lite.shi_c10_200e', True), ('cvt_2_4', 'cvt_2_4', False),
    ('cvt_2_4.untrained', 'cvt_2_4.untrained', False), ('resnet18', 'resnet18.a1_in1k', True),
    ('hf-hub:org/tiny', 'hf-hub:org/tiny', True),
])
def test_names(spec: str, name: str, has_weights: bool) -> None:
    found = resolve(spec)
    assert (found.spec, found.name, found.has_weights) == (spec, name, has_weights)
    assert found.file is found.epochs is None


def test_cfg_of_a_name_is_timms() -> None:
    assert resolve('cct_2_3x2').cfg == timm.get_pretrained_cfg('cct_2_3x2.c10').to_dict()
    assert resolve('cvt_2_4.untrained').cfg == timm.get_pretrained_cfg('cvt_2_4').to_dict()


def test_a_run_states_its_model(folder: Path) -> None:
    found = resolve(folder)
    assert (found.name, found.file, found.epochs) == ('cct_2_3x2', folder / 'weights.safetensors', 4)
    assert found.recipe == RECIPE and found.cfg == CFG and found.has_weights
    loaded = found.load()
    assert tuple(loaded.cfg['input_size']) == (3, 16, 16) and loaded.label_names == list('abcd') and loaded.epochs == 4
    assert 'pos_embed' not in dict(loaded.model.named_parameters()) and not loaded.model.training


def test_a_run_names_no_other_weights(folder: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, 'model_args': {'checkpoint_path': str(folder / 'weights.safetensors')}}
    (tmp_path / 'recipe.json').write_text(json.dumps({'recipe': recipe}))
    (tmp_path / 'weights.safetensors').write_bytes((folder / 'weights.safetensors').read_bytes())
    with pytest.raises(ZooError, match="model_args has 'checkpoint_path'"):
        resolve(tmp_path)


def test_a_file_or_run_for_a_given_model(folder: Path) -> None:
    """Its arguments are the caller's then, and not those of the run."""
    file = folder / 'weights.safetensors'
    for found in (resolve(file), resolve(f'cct_2_3x2={file}'), resolve(f'cct_2_3x2={folder}'),
                  resolve(folder, 'cct_2_3x2')):
        assert (found.name, found.file, found.recipe, found.epochs) == ('cct_2_3x2', file, {}, None)
        assert torch.equal(found.create().pos_embed, load_file(file)['pos_embed'])
    assert resolve(file, 'cvt_2_4').architecture == 'cvt_2_4'
    assert resolve('cct_2_3x2.digits', 'cvt_2_4').name == 'cct_2_3x2.digits'    # a name needs no other


def test_untrained_weights_are_of_one_seed() -> None:
    first, second = (resolve('cvt_2_4.untrained').create(img_size=16).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_local_repository(tmp_path: Path) -> None:
    model = timm.create_model('cvt_2_4', num_classes=4, img_size=16)
    timm.models.save_for_hf(model, str(tmp_path), model_config={'label_names': list('abcd')}, safe_serialization=True)
    loaded = resolve(f'local-dir:{tmp_path}').load()
    assert torch.equal(loaded.model.head.weight, model.head.weight) and list(loaded.label_names) == list('abcd')


def test_another_size_is_tried() -> None:
    loaded = resolve('cct_2_3x2').load(img_size=48)
    assert loaded.cfg['input_size'] == (3, 48, 48) and loaded.model.pos_embed.shape[1] == 144
    assert resolve('resnet10t.untrained').load(img_size=64).cfg['input_size'] == (3, 64, 64)
    with pytest.raises(ZooError, match='pixels are too few'):
        resolve('cvt_2_4.untrained').load(img_size=3)


@pytest.mark.parametrize('spec, words', [
    ('cct_2_3x9', 'Did you mean cct_2_3x2'), ('cct_2_3x2.c11', 'Did you mean c10'),
    ('none.pth', 'There is no file or run directory none.pth'), ('no/run', 'There is no file or run directory no/run'),
    ('cct_2_3x2=none.pth', 'There is no weights file none.pth'),
    ('~nobody_of_this_name/x', 'There is no file or run directory ~'),
    ('cct_2_3x2=~nobody_of_this_name/x', r'There is no weights file .*~'), ('.', 'is not a run directory'),
])
def test_mistakes(spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=words) as error:
        resolve(spec)
    assert r'\n' not in str(error.value)


def test_a_file_without_metadata_and_weights_that_are_missing(tmp_path: Path) -> None:
    save_weights({'a': torch.zeros(1)}, tmp_path / 'w.safetensors')
    with pytest.raises(ZooError, match='does not name its model'):
        resolve(tmp_path / 'w.safetensors')
    with pytest.raises(ZooError, match='There are no weights of cvt_2_4: give cvt_2_4=FILE, or '):
        resolve('cvt_2_4').create()
    with pytest.raises(ZooError, match='resnet18 cannot be loaded from'):
        Resolved('', 'resnet18', tmp_path / 'w.safetensors').load()


def test_rates_are_of_training_only() -> None:
    assert without_rates({'drop_path_rate': 0.1, 'depth': 3}) == {'depth': 3}
