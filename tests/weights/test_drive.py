"""Weights on Google Drive load by name, past its pages; an error page is no weights file."""
import contextlib
import hashlib
import http.server
import io
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

from tinyvit_zoo import ZooError
from tinyvit_zoo.models import list_models
from tinyvit_zoo.weights import catalogue, drive, fetch, url_cache

NAME, SMALL = 'mae_lite_vit_tiny', dict(depth=2)
DRIVE = {name: weight for name, weight in catalogue().items() if 'drive.google.com' in weight.url}
WARNING = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="/download" method="get"><input type="submit" id="uc-download-link" value="Download"/>
<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="a-b&amp;c"></form>
</body></html>"""
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""
SIGN_IN = '\n<html><head><title>Sign in - Google Accounts</title></head></html>'


class Server(http.server.BaseHTTPRequestHandler):
    """Answers as Drive does: `mood` is what it gives for the first request of a file."""
    mood, content = 'warning', b''

    def do_GET(self) -> None:
        fields = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(self.path).query))
        confirmed = fields.get('uuid') == 'a-b&c' and self.headers['Cookie'] == 'download_warning=x'
        page = {'quota': QUOTA, 'denied': QUOTA, 'sign in': SIGN_IN, 'again': WARNING,
                'warning': '' if confirmed else WARNING}.get(self.mood, '')
        body = page.replace('{id}', fields['id']).encode() or self.content
        self.send_response(403 if self.mood == 'denied' else 200)
        self.send_header('Content-Length', str(len(body)))
        self.send_header('Set-Cookie', 'download_warning=x')
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
        monkeypatch.setattr(fetch, '_SCHEMES', ('http',))
        monkeypatch.setattr(drive, 'DIRECT', f'http://127.0.0.1:{server.server_port}/download?id={{}}&confirm=t')
        monkeypatch.setattr(Server, 'mood', 'warning')
        yield tmp_path / 'checkpoints'
        server.shutdown()


def serve(state: dict[str, torch.Tensor]) -> bytes:
    """Serve tensors in a file as the authors save it."""
    buffer = io.BytesIO()
    model = {f'module.model.{name}': tensor for name, tensor in state.items()}
    torch.save({'model': model, 'start_epoch': 300}, buffer)
    Server.content = buffer.getvalue()
    return Server.content


def test_by_name_past_the_warning_and_another_file_later_is_refused(folder: Path) -> None:
    """The first use is noted; the file is kept under its id."""
    given = timm.create_model(NAME, **SMALL).state_dict()
    content = serve(given)
    loaded = timm.create_model(NAME, pretrained=True, **SMALL)
    assert loaded.pretrained_cfg['tag'] == 'wang_in1k_mae' and loaded.num_classes == 1000
    torch.testing.assert_close(dict(loaded.state_dict()), dict(given), rtol=0, atol=0)
    path = folder / '1VEpG2c5A62PefeecjQ3yaKfRlfph3LxO.pth'
    note = fetch.read_note(path)
    assert path.read_bytes() == content and note and note.sha256 == hashlib.sha256(content).hexdigest()
    path.unlink()
    serve({name: tensor + 1 for name, tensor in given.items()})
    with pytest.raises(ZooError, match='has changed since') as error:
        timm.create_model(NAME, pretrained=True, **SMALL)
    assert r'\n' not in str(error.value)


def test_an_encoder_by_name() -> None:
    state = timm.create_model(NAME, num_classes=0, global_pool='token', **SMALL).state_dict()
    serve({**state, 'mask_token': torch.zeros(1, 1, 96), 'decoder_norm.weight': torch.ones(96)})
    loaded = timm.create_model(f'{NAME}.wang_in1k_mae_400e', pretrained=True, **SMALL)
    assert loaded.num_classes == 0 and torch.equal(loaded.blocks[1].mlp.fc2.weight, state['blocks.1.mlp.fc2.weight'])


@pytest.mark.parametrize('mood, words', [
    ('quota', 'Quota exceeded: Sorry.*Too many users'), ('denied', '403.*Too many users'), ('sign in', 'Sign in'),
    ('again', 'Virus scan warning'), ('cut', 'damaged or not a weights file'), ('empty', 'no tensors')])
def test_no_weights_are_kept_of_anything_else(
        mood: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, 'mood', mood)
    content = serve({} if mood == 'empty' else {'a': torch.ones(9)})
    Server.content = content[:-99] if mood == 'cut' else content
    with pytest.raises(ZooError, match=words) as error:
        timm.create_model(NAME, pretrained=True)
    assert r'\n' not in str(error.value) and DRIVE[f'{NAME}.wang_in1k_mae'].url in str(error.value)
    assert 'partial' not in str(error.value) and not list(folder.glob('*'))


def test_the_page_leads_to_no_other_host() -> None:
    page = drive.Page(WARNING.replace('/download"', 'https://elsewhere.invalid/download"').encode())
    assert page.confirmed('https://drive.invalid/a') == ''
    assert drive.Page(b'<html><title>Gone</title><![foo[ <!-- x').reason == 'Gone'
    assert page.action and drive.Page(b'<html>').confirmed('https://drive.invalid/a') == ''


def test_links_and_every_file_of_the_paper() -> None:
    for link in ('file/d/1a-_B/view?usp=sharing', 'open?id=1a-_B', 'uc?export=download&id=1a-_B'):
        assert drive.drive_id(f'https://drive.google.com/{link}') == '1a-_B'
    assert drive.drive_id('https://example.org/file/d/1a/view') == drive.drive_id('https://drive.google.com/') == ''
    assert len({url_cache(weight.url) for weight in DRIVE.values()}) == len(DRIVE) == 17
    assert {weight.architecture for weight in DRIVE.values()} == {n for n in list_models() if n.startswith('mae_lite')}
    assert all(weight.encoder == (weight.published is None) for weight in DRIVE.values())
