"""torch.hub finds the zoo's models, these and no others, in a clone of the repository."""
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_arch_pretrained_cfgs

import tinyvit_zoo
from tinyvit_zoo.weights import save_weights

ROOT = Path(__file__).parents[1]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """OWNER/REPO is this working tree: what torch.hub would clone, it has."""
    monkeypatch.setattr(torch.hub, '_get_cache_or_reload', lambda *args, **kwargs: str(ROOT))


@pytest.mark.usefixtures('fetched')
def test_hub_lists_our_models_and_nothing_else() -> None:
    assert sorted(torch.hub.list('owner/repo')) == sorted(tinyvit_zoo.list_models())


@pytest.mark.usefixtures('fetched')
def test_hub_helps_with_each_model_and_its_tags() -> None:
    for name in tinyvit_zoo.list_models():
        text = torch.hub.help('owner/repo', name)
        cfgs = get_arch_pretrained_cfgs(name)
        assert text.startswith(f'{name}, ')
        assert next(iter(cfgs.values())).paper_ids in text
        assert all((f"'{cfg.tag}'" in text) == bool(cfg.has_weights) for cfg in cfgs.values())


@pytest.mark.usefixtures('fetched')
@pytest.mark.parametrize('source', ['local', 'github'])
def test_hub_makes_the_model_that_timm_makes(source: str) -> None:
    images = torch.randn(2, 3, 32, 32)
    outputs = []
    for create in (lambda: torch.hub.load(str(ROOT), 'cct_2_3x2', source=source, num_classes=7),
                   lambda: timm.create_model('cct_2_3x2', num_classes=7)):
        torch.manual_seed(0)
        with torch.inference_mode():
            outputs.append(create().eval()(images))
    assert outputs[0].shape == (2, 7)
    assert torch.equal(*outputs)


def test_hub_hands_on_the_tag_and_the_weights(tmp_path: Path) -> None:
    trained = timm.create_model('cct_2_3x2', num_classes=100)
    save_weights(trained.state_dict(), tmp_path / 'w.safetensors')
    loaded = torch.hub.load(
        str(ROOT), 'cct_2_3x2', source='local', pretrained=True, pretrained_cfg='shi_c100_200e',
        pretrained_cfg_overlay={'file': str(tmp_path / 'w.safetensors')})
    assert loaded.pretrained_cfg['tag'] == 'shi_c100_200e'
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in trained.state_dict().items())


def test_hub_without_pretrained_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('timm.models._builder.load_pretrained', lambda *args, **kwargs: pytest.fail('fetches weights'))
    assert torch.hub.load(str(ROOT), 'cct_2_3x2', source='local').num_classes == 10


def test_a_clone_needs_no_installation(tmp_path: Path) -> None:
    """Of the package: the clone's own is imported, whether or not another one is installed."""
    clone = tmp_path / 'clone'
    shutil.copytree(ROOT / 'tinyvit_zoo', clone / 'tinyvit_zoo', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copy(ROOT / 'hubconf.py', clone)
    code = (f'import torch; model = torch.hub.load({str(clone)!r}, "cct_2_3x2", source="local"); '
            f'import sys; print(sys.modules["tinyvit_zoo"].__file__, model(torch.zeros(1, 3, 32, 32)).shape[1])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.stdout.split() == [str(clone / 'tinyvit_zoo' / '__init__.py'), '10'], done.stderr
