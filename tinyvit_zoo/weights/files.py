"""Weight files: safetensors, PyTorch's own format and zips around either, read without running any code in them.

A file of ours holds two digests: `tensors_sha256`, and `metadata_sha256` of the metadata, with the other among them.
"""
import argparse
import errno
import hashlib
import io
import json
import logging
import math
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import ZooError
from ..recipes.ranges import DEVIATION, MEAN
from ..runtime.files import user_path, write_whole
from ..runtime.text import one_line, printable

LARGEST = 4 << 30       # bytes of a file that is fetched or unpacked
_logger = logging.getLogger(__name__)
_WRAPPERS = (  # the first one found is used
    'state_dict_ema', 'model_ema', 'ema_state_dict', 'state_dict', 'model', 'teacher', 'student', 'module')
_PREFIXES = ('_orig_mod.', 'module.')   # torch.compile and DistributedDataParallel
TENSORS, _METADATA = 'tensors_sha256', 'metadata_sha256'
REMEDY = 'delete it, and fetch it again or resume its run'
_HEADER_BYTES = 100 << 20       # at most, as in safetensors


def read_weights(path: str | Path, verified: bool = False) -> dict[str, Any]:
    """Read a weight file as saved (`unwrap` gets the tensors out of it); refuse one that is damaged or holds code.

    `verified`: its digest is known and was checked; else a warning is logged for what has no checksum.
    """
    # checked: CRCs of a zip, the digests of `save_weights`, structure; not bits within others' safetensors
    with _opened(path) as (file, name):
        if not _is_safetensors(file, name):
            return _read_torch(file, path, verified)
        metadata = _metadata(file)
        tensors = safetensors.torch.load_file(path) if name == path else safetensors.torch.load(file.read())
        if metadata.get(TENSORS) not in (None, tensors_digest(tensors)):
            raise ValueError('the digest of its tensors does not match')
        if not (verified or _sealed(metadata)):
            _logger.warning('%s is of an earlier version, without a digest of classes and preprocessing: damage to '
                            'them goes unnoticed. %s', printable(str(path)), _advice(path))
        return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of safetensors, in a zip or not; {} if it is of another kind or has none."""
    with _opened(path) as (file, name):
        return _metadata(file) if _is_safetensors(file, name) else {}


def read_cfg(path: str | Path) -> dict[str, Any]:
    """Read the preprocessing and classes (timm's cfg fields) that our training writes; {} if there are none."""
    metadata = read_metadata(path)
    try:
        cfg = json.loads(metadata.get('pretrained_cfg', '{}'))
    except (ValueError, RecursionError) as e:
        raise ZooError(f'{path} is damaged (its pretrained_cfg is not JSON): {REMEDY}.') from e
    where = f'{path} is damaged or too new: in its pretrained_cfg'
    check_cfg(cfg, where)
    if not _sealed(metadata):
        _check_unsealed(metadata, cfg, where)
    return cfg


def convert(source: str | Path, target: str | Path) -> None:
    """Rewrite weights as safetensors with digests of all contents; values, classes and preprocessing are kept."""
    save_weights(unwrap(read_weights(source, verified=True)), target, read_metadata(source))


def _advice(path: str | Path) -> str:
    """Return the command that converts a file."""
    target = Path(path).with_suffix('.safetensors')
    code = f'from tinyvit_zoo.weights import convert; convert({json.dumps(str(path))}, {json.dumps(str(target))})'
    return f'This command writes {printable(str(target))} with digests of all: python -c {shlex.quote(code)}'


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[IO[bytes], str | Path]]:
    """Open a weight file, or the one in a zip, with its name; an error inside the `with` becomes a ZooError."""
    path = user_path(path)
    try:
        if not path.is_file():
            raise ZooError(f'There is no weights file {path}: give the path of a .safetensors, .pth or .zip file.')
        with open(path, 'rb') as file:
            inner = _unzipped(file, path) if path.suffix != '.safetensors' else None
            file.seek(0)
            yield inner or (file, path)
    except ZooError:
        raise
    except pickle.UnpicklingError as e:
        names = ''
        with suppress(Exception):  # works for the zip format only
            names = f' ({", ".join(torch.serialization.get_unsafe_globals_in_checkpoint(path)[:3])})'
        raise ZooError(f'{path} is refused: it is damaged or holds Python objects beside tensors{names}; nothing was '
                       f'executed. Save it as a dictionary of tensors, preferably as safetensors.') from e
    except OSError as e:
        raise ZooError(f'{path} cannot be read ({one_line(e)}): give a readable file.') from e
    except Exception as e:  # every reader has its own errors for a damaged file
        raise ZooError(f'{path} is damaged or not a weights file ({one_line(e)}): {REMEDY}.') from e


def _unzipped(file: IO[bytes], path: Path) -> tuple[IO[bytes], str] | None:
    """Check a zip, and return the one file in it; None for PyTorch's own zips, and for files of other kinds."""
    if not zipfile.is_zipfile(file):
        return None
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > LARGEST or (size > LARGEST >> 4 and size > 20 * path.stat().st_size):
            raise ZooError(f'{path} is refused: unpacked it has {size / 1e9:.1f} GB, too much for a small model. Save '
                           f'its tensors as safetensors.')
        if broken := archive.testzip():
            raise ValueError(f'the checksum of {broken} does not match')
        names = [n for n in archive.namelist() if not n.endswith('/') and not n.startswith('__MACOSX')
                 and not Path(n).name.startswith('.')]
        if any(n.endswith('data.pkl') for n in names):
            return None
        if len(names) != 1:
            raise ZooError(f'{path} holds {len(names)} files, expected one: unpack it and name the one to use.')
        return io.BytesIO(archive.read(names[0])), names[0]


def _is_safetensors(file: IO[bytes], name: str | Path) -> bool:
    start = file.read(9)
    file.seek(0)
    return Path(name).suffix == '.safetensors' or start[8:] == b'{'


def _metadata(file: IO[bytes]) -> dict[str, str]:
    """Read the metadata of safetensors, checked against its digest where it has one."""
    length = int.from_bytes(file.read(8), 'little')
    header = json.loads(file.read(length) if length <= _HEADER_BYTES else b'')
    file.seek(0)
    metadata = header.get('__metadata__', {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError('its metadata are not strings')
    if _stated_digest(metadata, _METADATA) not in (None, _metadata_digest(metadata)):
        raise ValueError('the digest of its metadata does not match')
    return metadata


def _sealed(metadata: Mapping[str, str]) -> bool:
    """Return whether metadata have a digest of their own, or are of no file of ours."""
    return _METADATA in metadata or TENSORS not in metadata


def _stated_digest(content: Mapping[str, Any], name: str) -> Any:
    """Return the digest stated under `name`; if that key is damaged, any other value that looks like a digest."""
    others = [text for key, text in content.items()
              if key != TENSORS and isinstance(text, str) and re.fullmatch('[0-9a-f]{64}', text)]
    return content.get(name, others[0] if others else None)


def _read_torch(file: IO[bytes], path: str | Path, verified: bool) -> dict[str, Any]:
    """Read PyTorch's own format: a zip, or a bare pickle."""
    has_checksum = zipfile.is_zipfile(file)
    file.seek(0)
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():     # options; inert
        warnings.simplefilter('ignore')     # torch's, of damaged files
        content = torch.load(file, map_location='cpu', weights_only=True)
    if not isinstance(content, Mapping):
        raise ZooError(f'{path} holds a {type(content).__name__}, not a dictionary of tensors.')
    if not (has_checksum or verified):
        _logger.warning('%s has the format of PyTorch before 1.6, without a checksum: damage to its numbers goes '
                        'unnoticed. %s', printable(str(path)), _advice(path))
    return dict(content)


def unwrap(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, from inside the first of `_WRAPPERS` or bare, without `_PREFIXES`."""
    for _ in _WRAPPERS:  # no deeper, or a dictionary that holds itself has no end
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        content = inner[0] if inner else content
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = [str(key)[:40] for key in content if isinstance(key, (str, int))]
        raise ZooError(f'There are no tensors in the checkpoint, only {", ".join(keys)[:200] or "nothing"}: expected a '
                       f'dictionary of tensors, or one inside {" or ".join(_WRAPPERS)}.')
    for name, tensor in tensors.items():
        if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ZooError(f'The checkpoint holds a tensor named {str(name)[:40]!r} ({tensor.layout}, {tensor.dtype}, '
                           f'{tensor.device}): expected plain tensors, by the names of parameters.')
    for prefix in (*_PREFIXES, *_PREFIXES):  # in either order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def save_weights(tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write safetensors atomically, with digests of all contents. Equal contents give equal bytes."""
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {'format': 'pt', **(metadata or {}), TENSORS: tensors_digest(content)}  # transformers needs 'format'
    saved = safetensors.torch.save(content, {**metadata, _METADATA: _metadata_digest(metadata)})
    end = 8 + int.from_bytes(saved[:8], 'little')
    header = json.loads(saved[8:end])
    header['__metadata__'] = dict(sorted(header['__metadata__'].items()))  # the library's order is random
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode()
    text += b' ' * (-len(text) % 8)  # tensors stay aligned
    write_whole(user_path(path), len(text).to_bytes(8, 'little') + text + saved[end:])


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata_digest(metadata: Mapping[str, str]) -> str:
    stated = sorted((key, text) for key, text in metadata.items() if key != _METADATA)
    return hashlib.sha256(json.dumps(stated).encode()).hexdigest()


def check_sha256(path: str | Path, sha256: str, advice: str) -> None:
    """Raise ZooError with the advice unless the file has this digest."""
    digest = file_sha256(path, advice)
    if digest != sha256:
        raise ZooError(f'{path} is not the file in the catalogue (sha256 {digest[:12]}, expected {sha256[:12]}): '
                       f'{advice}.')


def file_sha256(path: str | Path, advice: str) -> str:
    digest = hashlib.sha256()
    try:
        if not Path(path).is_file():    # a pipe, or a device, has no end
            raise FileNotFoundError(errno.ENOENT, 'no file')
        with open(path, 'rb') as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()
    except OSError as e:
        raise ZooError(f'{path} is missing or cannot be read ({one_line(e)}): {advice}.') from e


# -- timm's cfg --------------------------------------------------------------------------------------------------------
def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _figures(value: Any, good: Callable[[float], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(
        type(v) in (int, float) and math.isfinite(v) and good(v) for v in value)


_INTERPOLATIONS = ('bicubic', 'bilinear', 'box', 'hamming', 'lanczos', 'nearest')
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    'num_classes': ('a whole number from 0 to a million', lambda v: _whole(v, 0, 10**6)),
    'input_size': ('channels, height and width', lambda v: isinstance(v, (list, tuple)) and len(v) == 3 and all(
        _whole(n, 1, 4096) for n in v)),
    'mean': (f'numbers {MEAN.expected}', lambda v: _figures(v, MEAN.fits)),
    'std': (f'numbers {DEVIATION.expected}', lambda v: _figures(v, DEVIATION.fits)),
    'crop_pct': ('a number from 0.05 to 2', lambda v: _figures([v], lambda n: 0.05 <= n <= 2)),
    'interpolation': (f'one of {", ".join(_INTERPOLATIONS)}', lambda v: v in _INTERPOLATIONS),
    'crop_mode': ('center, squash or border', lambda v: v in ('center', 'squash', 'border')),
    'label_names': ('texts', lambda v: v is None or (isinstance(v, (list, tuple)) and all(
        isinstance(name, str) for name in v))),
}


def check_cfg(cfg: Any, where: str, others: bool = False) -> None:
    """Raise ZooError unless the values of timm's cfg are possible; `others`: it may have unchecked fields."""
    if not isinstance(cfg, Mapping):
        raise ZooError(f'{where} is a {type(cfg).__name__}, expected fields of a timm cfg.')
    if not others and (unknown := cfg.keys() - _FIELDS.keys()):
        raise ZooError(f'{where} there is a field {min(unknown)!r}, expected {", ".join(_FIELDS)}.')
    for name, (expected, good) in _FIELDS.items():
        if name in cfg and not good(cfg[name]):
            raise ZooError(f'{where} {name} is {str(cfg[name])[:80]}, expected {expected}.')
    names, count = cfg.get('label_names'), cfg.get('num_classes')
    if names and count is not None and len(names) != count:
        raise ZooError(f'{where} there are {len(names)} label_names, expected num_classes, which is {count}.')
    channels = (cfg.get('input_size') or (3,))[0]
    for name in ('mean', 'std'):
        if len(cfg.get(name, ' ')) not in (1, 3, channels):
            raise ZooError(f'{where} {name} has {len(cfg[name])} numbers, expected {channels}, one for each channel.')
    if 'mean' in cfg and 'std' in cfg and len(cfg['mean']) != len(cfg['std']):
        raise ZooError(f'{where} mean has {len(cfg["mean"])} numbers and std {len(cfg["std"])}, expected as many.')


def _check_unsealed(metadata: Mapping[str, str], cfg: Mapping[str, Any], where: str) -> None:
    """Raise ZooError for values that our training never writes, in metadata without a digest."""
    if 'recipe' in metadata and not cfg:
        raise ZooError(f'{where} there is nothing, and other metadata are there.')
    numbers = [number for name in ('mean', 'std') for number in cfg.get(name, ())] + [cfg.get('crop_pct', 1)]
    if not all(0 <= number <= 1 for number in numbers) or len({*cfg.get('input_size', (3, 1))[1:]}) > 1:
        raise ZooError(f'{where} mean, std or crop_pct are not from 0 to 1, or the images are not square.')


_CONFIG = 'config_sha256'
_SEAL = 'or seal your own changes (tinyvit_zoo.weights.seal_config(CONFIG, FILE))'


def seal_config(config: Mapping[str, Any], weights: Path | None = None) -> dict[str, Any]:
    """Return the content of a config.json with a digest of the rest, and with that of the tensors of `weights`."""
    if not isinstance(config, Mapping):
        raise ZooError(f'The config is a {type(config).__name__}, expected the content of a config.json.')
    rest = {key: value for key, value in config.items() if key != _CONFIG}
    if weights and (tensors := read_metadata(weights).get(TENSORS)):
        rest[TENSORS] = tensors
    return {**rest, _CONFIG: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def check_config(path: Path) -> dict[str, Any]:
    """Return the content of a config.json; ZooError if it has a digest that does not match."""
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        stated = _stated_digest(config, _CONFIG)
    except Exception as e:  # timm has read it
        raise ZooError(f'{path} is damaged ({one_line(e)}): {REMEDY}.') from e
    if stated not in (None, seal_config(config)[_CONFIG]):
        raise ZooError(f'{path} is damaged (its digest does not match): {REMEDY}, {_SEAL}.')
    return config


def check_agreement(config: Path, cfg: Mapping[str, Any], weights: Path) -> None:
    """Raise ZooError if a config.json names other weights than those beside it or, without a digest, disagrees."""
    stated = check_config(config)
    if _CONFIG in stated:
        if stated.get(TENSORS) not in (None, read_metadata(weights).get(TENSORS)):
            raise ZooError(f'{weights} holds other weights than {config} describes: fetch both again, {_SEAL}.')
        return
    for name, value in read_cfg(weights).items():
        given = cfg.get(name)
        if json.dumps(given) != json.dumps(value) and not (name == 'label_names' and given is None):
            raise ZooError(f'{config} has {name} {str(given)[:60]}, and the weights beside it {str(value)[:60]}: fetch '
                           f'both again, {_SEAL}.')
