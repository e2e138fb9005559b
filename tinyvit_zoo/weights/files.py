"""Weight files: safetensors, PyTorch's own format, and zips around either, read without running anything in them."""
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
from .catalogue import FOLDER, catalogue

_WRAPPERS = (  # in the order in which they are looked for
    'state_dict_ema', 'model_ema', 'ema_state_dict', 'state_dict', 'model', 'teacher', 'student', 'module')
_PREFIXES = ('_orig_mod.', 'module.')                               # torch.compile and DistributedDataParallel
_DIGEST = 'tensors_sha256'
_CFG = 'pretrained_cfg'


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a weight file, as it was saved; `unwrap` then finds the tensors in it.

    A file that is damaged or holds code is refused. What is checked: the CRCs of a zip, the digest that `save_weights`
    writes, the structure in any case. (A changed bit within the tensors of a foreign safetensors file shows nowhere.)
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
    with safetensors.safe_open(path, framework='pt') as file:
        digest = (file.metadata() or {}).get(_DIGEST)
    tensors = safetensors.torch.load_file(path)
    if digest is not None and digest != _tensors_digest(tensors):
        raise ZooError(f'{path} is damaged (its tensors are not those that were saved): fetch it again.')
    return tensors


def read_cfg(path: str | Path) -> dict[str, Any]:
    """The preprocessing and classes (timm's cfg fields) that our training wrote into a safetensors file, else {}."""
    try:
        return json.loads(read_metadata(path).get(_CFG, '{}'))
    except ValueError:
        return {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors; {} where it is none or says nothing."""
    path = Path(path)
    if path.suffix != '.safetensors' or not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            return file.metadata() or {}
    except safetensors.SafetensorError:  # `read_weights` says what is wrong with it
        return {}


def _read_torch(path: Path) -> dict[str, Any]:
    """PyTorch's own format (a zip or a bare pickle), or a zip with one file of any of these formats in it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            if broken:
                raise ZooError(f'{path} is damaged (the checksum of {broken} does not fit): fetch it again.')
            names = [n for n in archive.namelist() if not n.endswith('/') and not n.startswith('__MACOSX')
                     and not Path(n).name.startswith('.')]
            if not any(n.endswith('data.pkl') for n in names):
                return _read_zipped(path, archive, names)
    with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their options; inert
        content = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(content, Mapping):
        raise ZooError(f'{path} holds a {type(content).__name__}, not a dictionary of tensors.')
    return dict(content)


def _read_zipped(path: Path, archive: zipfile.ZipFile, names: list[str]) -> dict[str, Any]:
    if len(names) != 1:
        raise ZooError(f'{path} holds {len(names)} files, expected one: unpack it and name the one to use.')
    with tempfile.TemporaryDirectory() as folder:
        return read_weights(archive.extract(names[0], folder))


def _refusal(path: Path) -> str:
    try:
        found = ', '.join(torch.serialization.get_unsafe_globals_in_checkpoint(path)[:3])
    except Exception:  # only zip-format files can be looked into; the refusal stands all the same
        found = ''
    return (f'{path} is refused, nothing in it was run: it is damaged or holds Python objects beside tensors'
            f'{f" ({found})" if found else ""}. Save it again as a dictionary of tensors, as safetensors for choice.')


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name: found inside `state_dict`, `model`, an EMA beside them, or bare.

    Of a self-distillation's `teacher` and `student`: the teacher, where the file has one. The prefixes of
    DistributedDataParallel and torch.compile are taken off.
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
            tensors = {name[len(prefix):]: value for name, value in tensors.items()}
    return tensors


def save_weights(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors with a digest of the tensors, beside the target and then renamed: whole or not at all.

    The same tensors and metadata give the same bytes.
    """
    path = Path(path)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    told = {'format': 'pt', **(metadata or {}), _DIGEST: _tensors_digest(content)}  # transformers asks for it
    write_whole(path, _in_order(safetensors.torch.save(content, told)))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order; the library has them in an order of chance."""
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


def promised_sha256(source: str | None) -> str:
    """The digest that the catalogue has of the file at this path, address or Hub id; '' where it has none."""
    promised = {str(FOLDER / w.file) if w.file else w.source: w.sha256 for w in catalogue().values()}
    return promised.get(source or '', '')


def check_sha256(path: str | Path, sha256: str, remedy: str) -> None:
    """ZooError, with what to do, unless the file has this digest."""
    path = Path(path)
    if not path.is_file():
        raise ZooError(f'{path} is missing: {remedy}.')
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise ZooError(f'{path} is not the file that the catalogue promises (sha256 {found[:12]}, expected '
                       f'{sha256[:12]}): {remedy}.')
