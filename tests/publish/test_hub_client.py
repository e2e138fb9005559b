"""Loading from the Hub: the real client in a process of its own, against a Hub on this machine."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import timm
import torch
from fake_hub import FIRST, serving

import tinyvit_zoo

CODE = '''
import sys, timm, torch, tinyvit_zoo
x = torch.load(sys.argv[1])
overlay = dict(hf_hub_id='org/tiny', url=None, num_classes=4, input_size=(3, 24, 40))
for args in (dict(model_name='hf-hub:org/tiny'), dict(model_name='cvt_2_4', pretrained_cfg_overlay=overlay)):
    model = timm.create_model(pretrained=True, **args).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(x['image']), x['logits'])
print('same', tinyvit_zoo.__version__)
'''


def python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != 'HF_HUB_OFFLINE'} | env
    command = [sys.executable, '-c', code, *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@torch.no_grad()
def test_loading_from_the_hub_and_then_without_it(tmp_path: Path) -> None:
    model = timm.create_model('cvt_2_4', num_classes=4, img_size=(24, 40)).eval()
    timm.models.save_for_hf(model, str(tmp_path / 'tiny'), safe_serialization=True)
    x = torch.randn(2, 3, 24, 40)
    torch.save({'image': x, 'logits': model(x)}, tmp_path / 'x.pt')
    home = {'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_DISABLE_XET': '1'}
    with serving() as hub:
        files = {path.name: path.read_bytes() for path in (tmp_path / 'tiny').iterdir()}
        hub.repositories['org/tiny'] = [{**FIRST, **files}]
        run = python(CODE, str(tmp_path / 'x.pt'), HF_ENDPOINT=hub.url, **home)
        assert run.stdout == f'same {tinyvit_zoo.__version__}\n', run.stderr[-2000:]
    run = python(CODE, str(tmp_path / 'x.pt'), HF_ENDPOINT=hub.url, HF_HUB_OFFLINE='1', **home)
    assert run.stdout == f'same {tinyvit_zoo.__version__}\n', run.stderr[-2000:]
