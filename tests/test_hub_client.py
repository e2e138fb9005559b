"""Loading from the Hub: the real client, against a local server that speaks what a download needs."""
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

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


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    folder = tmp_path / 'org' / 'tiny'
    folder.mkdir(parents=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repository, _, name = self.path.lstrip('/').partition('/resolve/main/')
            path = tmp_path / repository / name
            content = path.read_bytes() if name and path.is_file() else b''
            self.send_response(200 if content else 404)
            self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header('X-Repo-Commit', 'c' * 40)
            if not content:
                self.send_header('X-Error-Code', 'EntryNotFound')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            if self.command == 'GET':
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', folder
    server.shutdown()


@torch.no_grad()
def test_loading_from_the_hub(hub: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, folder = hub
    model = timm.create_model('cvt_2_4', num_classes=4, img_size=(24, 40)).eval()
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    x = torch.randn(2, 3, 24, 40)
    torch.save({'image': x, 'logits': model(x)}, tmp_path / 'x.pt')
    env = {**os.environ, 'HF_ENDPOINT': endpoint, 'HF_HOME': str(tmp_path / 'home'), 'HF_HUB_DISABLE_XET': '1'}
    env.pop('HF_HUB_OFFLINE', None)
    run = subprocess.run([sys.executable, '-c', CODE, str(tmp_path / 'x.pt')], env=env, capture_output=True, text=True)
    assert run.stdout == f'same {tinyvit_zoo.__version__}\n', run.stderr[-2000:]
