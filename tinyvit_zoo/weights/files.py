"""Weight files: safetensors, PyTorch's own format and zips around either, read without running any code in them."""
import argparse
import hashlib
import json
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
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
_PREFIXES = ('_orig_mod.', 'module.')   # torch.compile and DistributedDataParallel
_DIGEST = 'tensors_sha256'


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a weight file as saved (`unwrap` gets the tensors out of it); refuse one that is damaged or holds code."""
    # checked: CRCs of a zip, `save_weights`' digest, structure; not bits within others' safetensors
    path = Path(path)
    if not path.is_file():
        raise ZooError(f'There is no weights file {path}: give the path of a .safetensors, .pth or .zip file.')
    try:
        if path.suffix != '.safetensors':
            return _read_torch(path)
        tensors = safetensors.torch.load_file(path)
        if read_metadata(path).get(_DIGEST) not in (None, _tensors_digest(tensors)):
            raise ZooError(f'{path} is damaged (the digest of its tensors does not match): fetch it again.')
        return tensors
    except ZooError:
        raise
    except pickle.UnpicklingError as e:
        names = ''
        with suppress(Exception):  # works for the zip format only
            names = f' ({", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path)[:3])})'
        raise ZooError(f'{path} is refused, nothing in it was run: it is damaged or holds Python objects beside tensors'
                       f'{names}. Save it again as a dictionary of tensors, preferably as safetensors.') from e
    except Exception as e:  # every reader has its own errors for a damaged file
        raise ZooError(f'{path} is damaged or not a weights file ({one_line(e)}): fetch it again.') from e


def read_cfg(path: str | Path) -> dict[str, Any]:
    """Read the preprocessing and classes (timm's cfg fields) that our training writes; {} if there are none."""
    with suppress(ValueError):
        return json.loads(read_metadata(path).get('pretrained_cfg', '{}'))
    return {}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; {} if it is another file or has none."""
    path = Path(path)
    if path.suffix == '.safetensors' and path.is_file():
        with suppress(safetensors.SafetensorError), safetensors.safe_open(path, framework='pt') as file:
            return file.metadata() or {}  # `read_weights` reports a damaged file
    return {}


def _read_torch(path: Path) -> dict[str, Any]:
    """Read PyTorch's own format (a zip or a bare pickle), or a zip with one file of any of these formats."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            if broken := archive.testzip():
                raise ZooError(f'{path} is damaged (the checksum of {broken} does not match): fetch it again.')
            names = [n for n in archive.namelist() if not n.endswith('/') and not n.startswith('__MACOSX')
                     and not Path(n).name.startswith('.')]
            if not any(n.endswith('data.pkl') for n in names):
                if len(names) != 1:
                    raise ZooError(f'{path} holds {len(names)} files, expected one: unpack it and name the one to use.')
                return read_weights(archive.extract(names[0], folder))
    with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their options; inert
        content = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(content, Mapping):
        raise ZooError(f'{path} holds a {type(content).__name__}, not a dictionary of tensors.')
    return dict(content)


def unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, from inside the first of `_WRAPPERS` or bare, without `_PREFIXES`."""
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
    saved = safetensors.torch.save(content, metadata)
    end = 8 + int.from_bytes(saved[:8], 'little')
    header = json.loads(saved[8:end])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))  # the library's order is random
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)  # tensors stay aligned
    write_whole(Path(path), len(text).to_bytes(8, 'little') + text + saved[end:], shared=True)


def _tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sha256(path: str | Path, sha256: str, advice: str) -> None:
    """Raise ZooError with the advice unless the file has this digest."""
    path = Path(path)
    if not path.is_file():
        raise ZooError(f'{path} is missing: {advice}.')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != sha256:
        raise ZooError(f'{path} is not the file that the catalogue promises (sha256 {digest[:12]}, expected '
                       f'{sha256[:12]}): {advice}.')
