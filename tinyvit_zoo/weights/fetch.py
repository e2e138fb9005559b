"""Fetch weight files: by https alone, whole, of bounded size, and the same file at every later use.

What the catalogue has no digest of is noted beside the cached file, FILE.sha256, when it is first used.
"""
import datetime
import http.client
import itertools
import os
import re
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants as hub_constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..errors import ZooError
from ..runtime.files import write_whole, written_whole
from ..runtime.text import one_line
from ..version import __version__
from .catalogue import promised_sha256
from .drive import Page, direct_url, drive_id, is_page
from .files import LARGEST, check_sha256, file_sha256, read_weights, unwrap

SECONDS = 30.       # without an answer
_SCHEMES = ('https',)
_CHUNK = 1 << 20
_LEAST = 1000.      # bytes a second, after that
_NAMES = ('model.safetensors', 'pytorch_model.bin', 'pytorch_model.pth', 'model.pth')    # as timm prefers them
_ENDINGS = ('.safetensors', '.pth', '.pth.tar', '.bin')


@dataclass(frozen=True)
class Note:
    """What FILE.sha256 says: the digest at the first use, its date, and where the file was from."""
    sha256: str
    date: str
    url: str


def weight_file(cfg: Mapping[str, Any], cache_dir: str | Path | None = None) -> Path | None:
    """Return the weight file that a timm cfg names, fetched and checked; None where it names none."""
    file, hub_id, url = (cfg.get(key) for key in ('file', 'hf_hub_id', 'url'))
    if cfg.get('source') == 'local-dir':
        return _in_folder(Path(str(file)))
    if cfg.get('source') == 'hf-hub':
        file = None
    elif cfg.get('state_dict'):
        return None
    sha256 = promised_sha256(file or hub_id or url)
    if file:
        if sha256:
            check_sha256(file, sha256, 'reinstall tinyvit_zoo')
        return Path(file)
    if hub_id:
        path = _from_hub(hub_id, cfg.get('hf_hub_filename'), cache_dir)
        sha256 = sha256 or path.resolve().name      # the Hub's own digest of large files
        if re.fullmatch('[0-9a-f]{64}', sha256):
            check_sha256(path, sha256, f'delete {path.resolve()} to download it again')
        return path
    return _from_url(url, sha256, cache_dir) if url else None


def _in_folder(folder: Path) -> Path:
    """Return the file that timm prefers in a folder."""
    named = [folder / name for name in _NAMES if (folder / name).is_file()]
    others = [path for ending in _ENDINGS for path in sorted(folder.glob(f'*{ending}')) if path.is_file()]
    if not (named or others):
        raise ZooError(f'There are no weights in {folder}: expected {_NAMES[0]}.')
    return (named or others)[0]


def _from_hub(hub_id: str, name: str | None, cache_dir: str | Path | None) -> Path:
    repository, _, revision = hub_id.partition('@')
    try:
        return Path(hf_hub_download(repository, name or _NAMES[0], revision=revision or None, cache_dir=cache_dir))
    except EntryNotFoundError:
        if name:
            raise
        return Path(hf_hub_download(repository, _NAMES[1], revision=revision or None, cache_dir=cache_dir))


def hub_config(cfg: Mapping[str, Any], cache_dir: str | Path | None = None) -> Path | None:
    """Return the config.json that timm has read for `hf-hub:` or `local-dir:`; None for other models."""
    if cfg.get('source') == 'local-dir':
        return Path(str(cfg['file']), 'config.json')
    if cfg.get('source') == 'hf-hub':
        repository, _, revision = str(cfg['hf_hub_id']).partition('@')
        return Path(hf_hub_download(repository, 'config.json', revision=revision or None, cache_dir=cache_dir))
    return None


# -- from an address ---------------------------------------------------------------------------------------------------
def url_cache(url: str, cache_dir: str | Path | None = None) -> Path:
    """Return the path that a file of this address has, or will have, in the cache: that of torch.hub."""
    name = f'{drive_id(url)}.pth' if drive_id(url) else Path(urllib.parse.urlparse(url).path).name
    if name in ('', '..'):
        raise ZooError(f'{url} names no file: give the address of a .safetensors, .pth or .zip file.')
    return Path(cache_dir or Path(torch.hub.get_dir(), 'checkpoints'), name)


def _from_url(url: str, sha256: str, cache_dir: str | Path | None) -> Path:
    path = url_cache(url, cache_dir)
    if not path.exists():
        if hub_constants.HF_HUB_OFFLINE:
            raise OSError('HF_HUB_OFFLINE is set')
        _download(url, path)
    elif not sha256 and read_note(path) is None:    # the user's; a web page, saved in its place, is not to be noted
        unwrap(read_weights(path, verified=True))
    if sha256:
        check_sha256(path, sha256, 'delete it to download it again')
    else:
        _check_note(path, url)
    return path


def _download(url: str, path: Path) -> None:
    with ExitStack() as stack:
        chunks = _answer(stack, url, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            with open(partial, 'wb') as file:
                file.writelines(chunks)
            try:
                unwrap(read_weights(partial, verified=True))
            except ZooError as e:
                raise ZooError(f'Nothing was saved from {url}: {str(e).replace(str(partial), "it")}') from e


def _answer(stack: ExitStack, url: str, path: Path) -> Iterator[bytes]:
    """Return the content of the file at an address, for `path`; ZooError where a web page is there in its place."""
    opener = urllib.request.build_opener(_Https, _Redirects, urllib.request.HTTPCookieProcessor())
    address = direct_url(url)
    pages: list[Page] = []
    while address and len(pages) < 2:   # Drive may ask first whether a file is wanted that it has not scanned
        chunks = _chunks(stack.enter_context(_response(opener, address)), url)
        first = next(chunks, b'')
        if not is_page(first):
            return itertools.chain([first], chunks)
        pages.append(Page(first))
        address = pages[-1].confirmed(address) if drive_id(url) else ''
    raise ZooError(f'{url} returned a web page ({pages[-1].reason}), not a file. Try again later, or save the file in '
                   f'a browser as {path}.')


def _response(opener: urllib.request.OpenerDirector, url: str) -> Any:
    _check_scheme(url)
    try:
        request = urllib.request.Request(url, headers={'User-Agent': f'tinyvit_zoo/{__version__}'})
        return opener.open(request, timeout=SECONDS)
    except urllib.error.HTTPError as e:
        page = b''
        with suppress(OSError, http.client.HTTPException):
            page = _piece(e)
        raise OSError(f'{one_line(e)}{f": {Page(page).reason}" if is_page(page) else ""}') from e
    except (http.client.HTTPException, ValueError) as e:
        raise OSError(one_line(e)) from e


def _chunks(response: Any, url: str) -> Iterator[bytes]:
    """Yield the content of an answer; ZooError unless it comes whole and is not too large."""
    stated, done = response.headers.get('Content-Length') or '', 0
    length = int(stated[:20]) if stated.isdecimal() else 0  # where the server does not say it
    try:
        while chunk := _piece(response):
            done += len(chunk)
            if max(done, length) > LARGEST:
                raise ZooError(f'{url} has more than {LARGEST / 1e9:.1f} GB, too much for a small model: nothing was '
                               f'saved.')
            yield chunk
        reason = '' if length in (0, done) else f'{done:,} of {length:,} bytes came'
    except (OSError, http.client.HTTPException) as e:
        reason = one_line(e)
    if reason:
        raise ZooError(f'The download of {url} broke off ({reason}): try again.')


def _piece(response: Any) -> bytes:
    """Read _CHUNK bytes, fewer at the end; TimeoutError where they come too slowly."""
    piece, begun = bytearray(), time.monotonic()
    while len(piece) < _CHUNK and (more := response.read1(_CHUNK - len(piece))):
        piece += more
        if len(piece) < _LEAST * (time.monotonic() - begun - SECONDS):
            raise TimeoutError('timed out: too few bytes came')
    return bytes(piece)


class _Timed(http.client.HTTPConnection):
    def getresponse(self) -> http.client.HTTPResponse:
        """Return the answer; TimeoutError unless its headers arrive within SECONDS."""
        late, sock = threading.Event(), self.sock

        def stop() -> None:
            late.set()
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        timer = threading.Timer(SECONDS, stop)
        timer.start()
        try:
            response = super().getresponse()
            if not late.is_set():
                return response
        except (OSError, http.client.HTTPException):
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        raise TimeoutError('timed out: the headers did not arrive')


class _Connection(_Timed, http.client.HTTPSConnection):
    pass


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: Any) -> Any:
        return self.do_open(_Connection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fp.close()      # or urllib reads all of its page
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if urllib.parse.urlparse(url).scheme not in _SCHEMES:
        raise ZooError(f'{url} is not downloaded, as plain http can be tampered with: expected https://..., or a file '
                       f'by pretrained_cfg_overlay=dict(file=PATH).')


# -- the note of the first use -----------------------------------------------------------------------------------------
def read_note(path: Path) -> Note | None:
    """Return the note beside a cached file, None if there is none; ZooError if it is damaged."""
    beside = path.with_name(f'{path.name}.sha256')
    if not beside.is_file():
        return None
    parts = beside.read_text(encoding='utf-8', errors='replace').split()
    if len(parts) != 3 or not re.fullmatch('[0-9a-f]{64}', parts[0]):
        raise ZooError(f'{beside} is damaged: delete it, and {path} too unless you trust that.')
    return Note(*parts)


def _check_note(path: Path, url: str) -> None:
    """Raise ZooError if a cached file is another one than at its first use; note its digest if this is that."""
    digest, note = file_sha256(path, 'delete it to download it again'), read_note(path)
    beside, where = f'{path.name}.sha256', url.replace(' ', '%20')
    if note is None:
        content = f'{digest} {datetime.date.today()} {where}\n'
        if os.access(path.parent, os.W_OK):  # read-only caches have no note
            write_whole(path.with_name(beside), content.encode())
    elif note.url != where:
        raise ZooError(f'{path} is from {note.url}, not from {url}: delete it and {beside}, or give another cache_dir.')
    elif note.sha256 != digest:
        raise ZooError(f'{path} has changed since {note.date} (sha256 {digest[:12]}, it was {note.sha256[:12]}): '
                       f'delete it to download it again; delete {beside} too if you trust the new file.')
