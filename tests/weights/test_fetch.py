"""Weight files are fetched whole, by https, of bounded size, and are the same at every later use."""
import contextlib
import http.server
import os
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.cli.main import main
from tinyvit_zoo.weights import fetch, save_weights, weight_file


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by the name: whole, cut short, without end, slow, a byte at a time, or a redirection."""
    content = b''
    dripped = threading.Event()    # to the end

    def do_GET(self) -> None:
        kind = self.path.removeprefix('/').partition('.')[0]
        if kind == 'head':
            self.wfile.write(b'HTTP/1.1 200 OK\r\n')
            with contextlib.suppress(OSError):
                self.drip(b'x' * 100)
            return
        self.send_response(302 if kind in ('elsewhere', 'moved') else 404 if kind in ('none', 'cut404') else 200)
        if kind in ('elsewhere', 'moved'):
            self.send_header('Location', 'ftp://no.invalid/w.safetensors' if kind == 'elsewhere' else '/w.safetensors')
        if kind == 'cut404':
            self.send_header('Transfer-Encoding', 'chunked')
        elif kind not in ('none', 'endless', 'moved'):
            self.send_header('Content-Length', str(10**11 if kind == 'huge' else len(self.content)))
        self.end_headers()
        if kind == 'slow':
            threading.Event().wait(2)
        with contextlib.suppress(OSError):  # the client has gone
            if kind == 'moved':
                self.drip(b'x' * 20)
                self.dripped.set()
            if kind == 'drip':
                self.drip(self.content)
            for _ in range(1000 if kind == 'endless' else 1):
                self.wfile.write(self.content[:len(self.content) // 2] if kind == 'cut' else self.content)

    def drip(self, content: bytes) -> None:
        for byte in content:
            self.wfile.write(bytes([byte]))
            threading.Event().wait(0.1)

    def log_message(self, *args: object) -> None:
        pass


class Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(type('Connection', (fetch._Timed, http.client.HTTPConnection), {}), req)


@pytest.fixture(scope='module')
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp('served') / 'w.safetensors'
    save_weights(timm.create_model('cct_2_3x2', img_size=16).state_dict(), path)
    Server.content = path.read_bytes()
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.setattr(fetch, '_SCHEMES', ('http',))
    monkeypatch.setattr(fetch, '_Https', Http)
    monkeypatch.setattr(fetch, 'SECONDS', 0.5)
    monkeypatch.setattr(fetch, 'LARGEST', 20_000_000)


def load(url: str) -> nn.Module:
    return timm.create_model('cct_2_3x2', pretrained=True, pretrained_cfg_overlay=dict(
        url=url, input_size=(3, 16, 16)))


@pytest.mark.parametrize('name, words', [
    ('cut', 'broke off'), ('huge', 'has more than 0.0 GB'), ('endless', 'has more than'), ('slow', 'timed out'),
    ('drip', 'too few bytes'), ('elsewhere', 'is not downloaded'), ('none', '404'), ('cut404', '404'),
    ('head', 'timed out: the head'), ('', 'names no file')])
def test_what_does_not_come_whole_is_not_kept(name: str, words: str, address: str, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match=words) as error:
        load(f'{address}/{name}{".safetensors" * bool(name)}')
    assert r'\n' not in str(error.value) and [p for p in tmp_path.rglob('*') if p.is_file()] == []


def test_the_page_of_a_redirection_is_not_read(address: str) -> None:
    load(f'{address}/moved.safetensors')
    assert not Server.dripped.is_set()


def test_threads_that_fetch_one_file_do_not_disturb_each_other(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Barrier(2, timeout=60)
    read = fetch.read_weights

    def waiting(path: Path, **keywords: bool) -> object:
        if '.partial' in path.name:     # both are written before one of them is renamed
            inside.wait()
        return read(path, **keywords)
    monkeypatch.setattr(fetch, 'read_weights', waiting)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(weight_file, [{'url': f'{address}/w.safetensors'}] * 2)
    assert first == second and first and first.read_bytes() == Server.content


def test_https_alone(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for url in (f'{address}/w.safetensors', 'file:///etc/passwd', 'ftp://no.invalid/w.pth', 'w.pth'):
        with pytest.raises(ZooError, match='expected https'):
            weight_file({'url': url}, '/no/such')


def test_the_first_use_is_noted_and_another_file_refused(address: str, tmp_path: Path) -> None:
    url, path = f'{address}/w.safetensors', tmp_path / 'checkpoints' / 'w.safetensors'
    first = load(url)
    note, content = fetch.read_note(path), path.read_bytes()
    assert note and note.url == url and note.sha256 == fetch.file_sha256(path, '')
    assert torch.equal(load(url).head.weight, first.head.weight)
    save_weights(timm.create_model('cct_2_3x2', img_size=16).state_dict(), path)    # fits, and has digests
    with pytest.raises(ZooError, match='has changed since'):
        load(url)
    path.write_bytes(content)
    with pytest.raises(ZooError, match=f'is from {address}'):
        load(f'{address}/elsewhere/w.safetensors')
    beside = path.with_name('w.safetensors.sha256')
    beside.write_text('x')
    with pytest.raises(ZooError, match='is damaged: delete it'):
        load(url)
    beside.unlink()
    path.unlink()
    load(url)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ZooError, match=r'missing or cannot be read \(no file\): delete it'):
        load(url)


def test_a_web_page_put_into_the_cache_is_not_noted(address: str, tmp_path: Path) -> None:
    """As a browser saves one in place of the weights; the good file is taken after it."""
    url, path = f'{address}/w.safetensors', tmp_path / 'checkpoints' / 'w.safetensors'
    path.parent.mkdir()
    path.write_text('<html>Sign in</html>')
    with pytest.raises(ZooError, match='damaged or not a weights file'):
        load(url)
    assert fetch.read_note(path) is None
    path.write_bytes(Server.content)
    load(url)
    assert fetch.read_note(path)


def test_info_shows_the_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'checkpoints' / 'cct2-3x2_cifar10.pth.zip'
    path.parent.mkdir()
    path.with_name(f'{path.name}.sha256').write_text(f'{"ab" * 32} 2026-01-02 https://there\n')
    assert main(['info', 'cct_2_3x2.shi_c10_200e']) == 0
    assert f'{"ab" * 32}, of the first download, on 2026-01-02' in capsys.readouterr().out
