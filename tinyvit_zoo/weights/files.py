"""Weight files: safetensors, PyTorch's own format and zips around either, read without running any code in them."""
from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import ZooError
from ..runtime.files import write_whole
from ..runtime.text import one_line

_WRAPPERS = (  # in the order of preference
    'state_dict_ema', 'model_ema', 'ema_state_dict', 'state_dict', 'model', 'teacher', 'student', 'module')
_PREFIXES = ('_orig_mod.', 'module.')                               # torch.compile and DistributedDataParallel
_DIGEST = 'tensors_sha256'


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a weight file as it was saved; `unwrap` gets the tensors out of it.

    A file that is damaged or holds code is refused, by the CRCs of a zip, the digest that `save_weights` writes and the
    structure. (A flipped bit within the tensors of a safetensors file of others goes unnoticed.)
    """
    path = Path(path)
    if not path.is_file():
        raise ZooError(f'There is no weights file {path}: give the path of a .safetensors, .pth or .zip file.')
    try:
        return _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    except ZooError:
        raise
    except pickle.UnpicklingError as e:
        raise ZooError(_refusal(path)) from e
    except Exception as e:  # every reader has its own errors for a damaged file
        raise ZooError(f'{path} is damaged or not a weights file ({one_line(e)}): fetch it again.') from e


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    digest, tensors = read_metadata(path).get(_DIGEST), safetensors.torch.load_file(path)
    if digest is not None and digest != _tensors_digest(tensors):
        raise ZooError(f'{path} is damaged (the digest of its tensors does not match): fetch it again.')
    return tensors


def read_cfg(path: str | Path) -> dict[str, Any]:
    """Read the preprocessing and classes (timm's cfg fields) that our training writes; {} if there are none."""
    try:
        return json.loads(read_metadata(path).get('pretrained_cfg', '{}'))
    except ValueError:
        return {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; {} if it is another file or has none."""
    path = Path(path)
    if path.suffix != '.safetensors' or not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            return file.metadata() or {}
    except safetensors.SafetensorError:  # `read_weights` says what is wrong with it
        return {}


def _read_torch(path: Path) -> dict[str, Any]:
    """PyTorch's own format (a zip or a bare pickle), or a zip that holds one file of any of these formats."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ZooError(f'{path} is damaged (the checksum of {broken} does not match): fetch it again.')
            names = [n for n in archive.namelist() if not n.endswith('/') and not n.startswith('__MACOSX')
                     and not Path(n).name.startswith('.')]
            if not any(n.endswith('data.pkl') for n in names):
                if len(names) != 1:
                    raise ZooError(f'{path} holds {len(names)} files, expected one: unpack it and name the one to use.')
                with tempfile.TemporaryDirectory() as folder:
                    return read_weights(archive.extract(names[0], folder))
    with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their options; inert
        content = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(content, Mapping):
        raise ZooError(f'{path} holds a {type(content).__name__}, not a dictionary of tensors.')
    return dict(content)


def _refusal(path: Path) -> str:
    try:
        names = ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(path)[:3])
    except Exception:  # works for the zip format only; the refusal stands all the same
        names = ''
    return (f'{path} is refused, nothing in it was run: it is damaged or holds Python objects beside tensors'
            f'{f" ({names})" if names else ""}. Save it again as a dictionary of tensors, preferably as safetensors.')


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name: those in `state_dict`, `model` or, if there is one, an EMA, or bare.

    Of a self-distillation's `teacher` and `student`, the teacher. Prefixes of DistributedDataParallel and torch.compile
    are removed.
    """
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return unwrap(content[key])
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if content and not tensors:
        raise ZooError(f'There are no tensors in the checkpoint, only {", ".join(map(str, content))[:200]}: expected a '
                       f'dictionary of tensors, or one inside {" or ".join(_WRAPPERS)}.')
    for prefix in (*_PREFIXES, *_PREFIXES):  # in either order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def save_weights(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors with a digest of the tensors, whole or not at all. Equal contents give equal bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {'format': 'pt', **(metadata or {}), _DIGEST: _tensors_digest(content)}  # transformers needs 'format'
    write_whole(Path(path), _in_order(safetensors.torch.save(content, metadata)), shared=True)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a safetensors file, which the library writes in random order."""
    length = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8:8 + length])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, 'little') + text + content[8 + length:]


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sha256(path: str | Path, sha256: str, advice: str) -> None:
    """Raise ZooError, with what to do, unless the file has this digest."""
    path = Path(path)
    if not path.is_file():
        raise ZooError(f'{path} is missing: {advice}.')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise ZooError(f'{path} is not the file that the catalogue promises (sha256 {digest[:12]}, expected '
                       f'{sha256[:12]}): {advice}.')
