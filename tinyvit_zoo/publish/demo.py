"""Make a demo: one static folder whose page classifies images in the browser, by onnxruntime-web.

The page is in page/. Each model is an ONNX file with a second output, where it looks, checked against the model.
"""
import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.cache import cache_folder
from ..data.sources import open_source
from ..data.splits import Split
from ..errors import ZooError
from ..interpret.attention import Looking, no_look
from ..measure.bench import check_size
from ..measure.prediction import label_names
from ..runtime.files import check_path, written_whole
from ..runtime.packaged import read_packaged
from ..runtime.text import Progress, one_line
from ..version import __version__
from ..weights import catalogue
from ..weights.resolve import Loaded, Resolved, read_recipe, resolve
from .export import TOLERANCE, difference, quiet
from .formats import FORMATS, write_onnx

RUNTIME = '1.30.0'      # of onnxruntime-web, and the digests of its files in the npm package
INTEGRITY = {
    'ort.wasm.bundle.min.mjs': 'sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG',
    'ort-wasm-simd-threaded.wasm': 'sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM'}
HEADERS = {     # of pages that may use threads
    'cross-origin-embedder-policy': 'require-corp', 'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'cross-origin'}
PAGE = 'publish/page'      # in the package
FILES = 'app.js', 'index.html', 'preprocess.js', 'style.css'
DRAWN = 'airplane', 'automobile', 'frog', 'horse', 'ship'
_CDN = f'https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME}/dist/'
_INTERPOLATIONS = ('bicubic', 'bilinear', 'lanczos', 'hamming', 'box')      # of preprocess.js
_MNIST = {'side': 28, 'margin': 1 / 7}     # how a drawing becomes an image
_FRAMES: dict[str, dict[str, float]] = {'digits': {'side': 8, 'margin': 0}}
_EXAMPLES, _EXAMPLE_SIDE = 8, 256
_ABOUT = f'Made by tinyvit_zoo {__version__}; inference by onnxruntime-web {RUNTIME}.'


def make_demo(specs: Sequence[str], output: Path, offline: bool = False, img_size: int | None = None,
              ) -> list[dict[str, Any]]:
    """Write the folder `output`, or replace a demo there; return an entry of models.json for each model.

    `offline`: with the files of onnxruntime-web, fetched by npm the first time; else the page loads them from a CDN.
    `img_size`: if not that of the weights.
    """
    check_replaceable(output)
    FORMATS['.onnx'].require()
    if repeated := [spec for i, spec in enumerate(specs) if spec in specs[:i]]:
        raise ZooError(f'{repeated[0]} is given twice: give it once.')
    found = [resolve(spec) for spec in specs]
    runtime = runtime_folder() if offline else None
    with written_whole(output) as folder:
        folder.mkdir()
        for name in FILES:
            (folder / name).write_bytes(read_packaged(f'{PAGE}/{name}'))
        (folder / 'models').mkdir()
        entries: list[dict[str, Any]] = []
        with Progress(len(found), 'exporting', lines=False) as progress:
            for resolved in found:
                entries.append(_write_model(resolved, folder, [entry['title'] for entry in entries], img_size))
                progress.show(len(entries))
        page = {'made_by': f'tinyvit_zoo {__version__}', 'about': _ABOUT, 'runtime': _runtime(runtime, folder),
                'models': entries, 'examples': write_examples(found, folder / 'examples')}
        (folder / 'models.json').write_text(json.dumps(page, indent=1), encoding='utf-8')
        (folder / 'README.md').write_text(_readme(found, entries), encoding='utf-8')
    return entries


def check_replaceable(output: Path) -> None:
    """Raise ZooError if `output` holds anything but an earlier demo."""
    check_path(output)
    if not output.absolute().parent.is_dir():
        raise ZooError(f'There is no folder {output.absolute().parent}: create it or choose another --output.')
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    names = {path.name for path in output.iterdir()} if output.is_dir() else {output.name}
    ours = {'README.md', 'models.json', 'models', 'examples', 'runtime', *FILES}
    content = None
    with suppress(OSError, ValueError, RecursionError):
        made = output / 'models.json'
        content = json.loads(made.read_text(encoding='utf-8') if made.is_file() else '')    # a pipe would wait
    if not isinstance(content, dict) or 'made_by' not in content or names - ours:
        other = ', '.join(sorted(names - ours or names)[:3])
        raise ZooError(f'{output} holds other files ({other}): choose another --output, or empty it.')


def _write_model(
        resolved: Resolved, folder: Path, titles: Sequence[str], img_size: int | None) -> dict[str, Any]:
    """Export a model into `folder`; return what the page has to know of it."""
    if not resolved.untrained and resolved.cfg.get('num_classes') == 0:     # before anything is fetched
        raise ZooError(f'{resolved.spec} has no classes to show: it is an encoder, to train a classifier from.')
    check_size(resolved, img_size, 1, torch.device('cpu'))
    loaded = resolved.load(img_size=img_size)
    cfg, names = loaded.cfg, label_names(loaded.model.pretrained_cfg)
    count = int(loaded.model.num_classes)
    _check(loaded, count)
    title = Path(resolved.spec).name if resolved.recipe else loaded.title
    title += f' ({titles.count(title) + 1})' * (title in titles)
    file = folder / 'models' / f'{len(titles)}-{re.sub(r"[^A-Za-z0-9._-]+", "_", title)}.onnx'
    looks, stride = _export(loaded, file)
    labels = names if len(names) == count else [str(i) for i in range(count)]
    return {
        'title': title, 'file': f'models/{file.name}', 'integrity': integrity(file),
        'megabytes': file.stat().st_size / 1e6, 'parameters': sum(p.numel() for p in loaded.model.parameters()),
        'labels': labels, 'temperature': loaded.readout.temperature, 'multi_label': loaded.readout.multi_label,
        'looks': looks, 'stride': stride, 'digit': _frame(resolved, labels),
        **{key: cfg[key] for key in ('input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std')}}


def _check(loaded: Loaded, classes: int) -> None:
    """Raise ZooError for a model that the page cannot show."""
    channels, height, width = loaded.cfg['input_size']
    if not classes:
        raise ZooError(f'{loaded.title} has no classes to show: it is an encoder, to train a classifier from.')
    if channels not in (1, 3):
        raise ZooError(f'{loaded.title} takes images of {channels} channels, but a browser has grey and RGB images.')
    if loaded.cfg['interpolation'] not in _INTERPOLATIONS:
        raise ZooError(f'{loaded.title} resizes by {loaded.cfg["interpolation"]!r}, expected one of '
                       f'{", ".join(_INTERPOLATIONS)}: as the page has no other.')
    try:
        with torch.no_grad():
            loaded.model(torch.zeros(1, channels, height, width))
    except Exception as e:  # every architecture has its own
        raise ZooError(f'{loaded.title} cannot take images of {height} x {width}, the size it states '
                       f'({one_line(e)}): give weights whose size is right.') from e


@quiet()
def _export(loaded: Loaded, path: Path) -> tuple[str, list[float]]:
    """Write the model with where it looks, if that is defined, and check both; return its name and the stride."""
    if why := no_look(loaded.model):
        _write_checked(loaded, loaded.model, ('logits',), path)
        return f'No attention map: {why}.', []
    model = Looking(loaded.model)
    _write_checked(loaded, model, ('logits', 'looks'), path)
    return model.kind, list(model.layers[-1].stride)


def _write_checked(loaded: Loaded, model: nn.Module, names: Sequence[str], path: Path) -> None:
    write_onnx(model, loaded.cfg['input_size'], path, outputs=names)
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])

    def flat(outputs: Any) -> Tensor:
        return torch.cat([torch.as_tensor(each).flatten() for each in outputs])
    worst = difference(lambda images: flat(session.run(None, {'images': images.numpy()})),
                       lambda images: flat(model(images) if names[1:] else [model(images)]), loaded.cfg['input_size'])
    if not worst <= TOLERANCE:
        raise ZooError(f'The exported {loaded.title} differs from the model (by {worst:.1e}, expected at most '
                       f'{TOLERANCE:g}): no demo was written; please report it.')


def integrity(path: Path) -> str:
    """Return the digest of a file as browsers check it."""
    return f'sha384-{base64.b64encode(hashlib.sha384(path.read_bytes()).digest()).decode()}'


def _dataset(resolved: Resolved) -> str:
    """Return the key, or the source, of the images that weights were trained on; '' if unknown."""
    if resolved.recipe and resolved.file:
        return str(read_recipe(resolved.file.parent).get('data', {}).get('source', ''))
    return catalogue()[resolved.name].dataset if resolved.name in catalogue() else ''


def _frame(resolved: Resolved, labels: Sequence[str]) -> dict[str, float] | None:
    """Return how a drawing becomes an image for a classifier of digits, as MNIST has them; None for others."""
    return _FRAMES.get(_dataset(resolved), _MNIST) if list(labels) == list('0123456789') else None


def write_examples(found: Sequence[Resolved], folder: Path, known: Collection[str] = ()) -> list[dict[str, str]]:
    """Write images that may be shown: scikit-learn's digits, those in the test folders of runs, else drawn ones.

    `known`: of the drawn ones, those of these classes alone.
    """
    folder.mkdir()
    examples: list[dict[str, str]] = []
    for source in dict.fromkeys(filter(None, map(_dataset, found))):
        if source != 'digits' and source.partition(':')[0] != 'folder':
            continue
        with suppress(ZooError):    # the folder has gone, or there is no scikit-learn
            opened = open_source(source)
            test: Split | None = opened.test
            if test is None or (source != 'digits' and not test.images.root):
                continue
            for i in _one_a_class(test):
                image = test.read(i)
                image.thumbnail((_EXAMPLE_SIDE, _EXAMPLE_SIDE))
                name = f'{len(examples)}.png'
                image.save(folder / name)
                examples.append({'file': f'examples/{name}', 'title': _title(source, opened.class_names, test, i)})
    if not examples:
        for name in DRAWN:
            if known and name not in known:
                continue
            (folder / f'{name}.png').write_bytes(read_packaged(f'{PAGE}/examples/{name}.png'))
            examples.append({'file': f'examples/{name}.png', 'title': f'a drawn {name}'})
    return examples


def _one_a_class(test: Split) -> list[int]:
    """Return the first image of each class, eight at most."""
    first: dict[int, int] = {}
    for i, label in enumerate(test.rarest.labels.tolist()):
        first.setdefault(label, i)
    return [first[label] for label in sorted(first)][:_EXAMPLES]


def _title(source: str, names: Sequence[str], test: Split, i: int) -> str:
    if test.multi_label:
        return f'image {i} of {source}'
    return f'{"digit " if source == "digits" else ""}{names[int(test.labels[i])]}'


# -- onnxruntime-web ---------------------------------------------------------------------------------------------------
def runtime_folder() -> Path:
    """Return the folder with the files of onnxruntime-web, fetched by npm the first time."""
    folder = cache_folder().parent / f'onnxruntime-web-{RUNTIME}'
    if is_whole(folder):
        return folder
    if not shutil.which('npm'):
        raise ZooError('--offline fetches onnxruntime-web by npm, which is not installed: install Node.js, or leave '
                       'out --offline.')
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(folder) as partly:
        partly.mkdir()
        command = ['npm', 'pack', '--silent', f'onnxruntime-web@{RUNTIME}']
        result = subprocess.run(command, cwd=partly, capture_output=True, text=True)
        archives = [*partly.glob('*.tgz')]
        if result.returncode or not archives:
            reason = ' '.join((result.stderr or result.stdout).split())[:200]
            raise ZooError(f'`{" ".join(command)}` failed ({reason}): connect to the network, or leave out --offline.')
        with tarfile.open(archives[0]) as archive:
            for name in INTEGRITY:
                member = archive.extractfile(f'package/dist/{name}')
                assert member
                (partly / name).write_bytes(member.read())
        archives[0].unlink()
        if not is_whole(partly):
            raise ZooError(f'npm returned an onnxruntime-web {RUNTIME} with another digest: check its registry.')
    return folder


def is_whole(folder: Path) -> bool:
    """Return whether all files of onnxruntime-web are there, with their digests."""
    return all((folder / name).is_file() and integrity(folder / name) == digest for name, digest in INTEGRITY.items())


def _runtime(source: Path | None, folder: Path) -> Mapping[str, Any]:
    """Copy the files of onnxruntime-web, if given; return their addresses and digests."""
    base = _CDN
    if source:
        base = 'runtime/'
        shutil.copytree(source, folder / 'runtime')
    module, wasm = (base + name for name in INTEGRITY)
    return {'module': module, 'wasm': wasm,
            'integrity': dict(zip((module, wasm), INTEGRITY.values(), strict=True))}


# -- the folder as a Space, and served here ----------------------------------------------------------------------------
def _readme(found: Sequence[Resolved], entries: Sequence[Mapping[str, Any]]) -> str:
    hub = [name for each in found if (name := each.name.removeprefix('hf-hub:')) != each.name]
    weights = [catalogue()[each.name] for each in found if each.name in catalogue()]
    hub += [weight.hf_hub_id for weight in weights if weight.hf_hub_id]
    lines = ['---', 'title: Small vision transformers', 'emoji: 🔎', 'colorFrom: blue', 'colorTo: indigo',
             'sdk: static', 'app_file: index.html', 'pinned: false']
    if hub:
        lines += ['models:', *(f'- {name}' for name in dict.fromkeys(hub))]
    lines += ['custom_headers:', *(f'  {key}: {value}' for key, value in HEADERS.items()), '---', '',
              '# Small vision transformers in the browser', '', _ABOUT, 'A static page: serve this folder, for example '
              'by `python -m http.server`, or upload it as a Space:', '`hf upload ORG/NAME . --repo-type space`.', '',
              '| model | file | MB |', '|---|---|---|',
              *(f'| {e["title"]} | {e["file"]} | {e["megabytes"]:.1f} |' for e in entries), '']
    return '\n'.join(lines)


class _Handler(SimpleHTTPRequestHandler):
    def guess_type(self, path: Any) -> str:     # the machine's table of types may be wrong
        types = {'.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm'}
        return types.get(Path(path).suffix) or super().guess_type(path)

    def end_headers(self) -> None:
        for key, value in {**HEADERS, 'cache-control': 'no-cache'}.items():
            self.send_header(key, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Print nothing: a browser closes connections, and may ask for what is no path."""


@contextmanager
def serving(folder: Path, port: int = 8000) -> Iterator[ThreadingHTTPServer]:
    """Make a server of the folder, with the headers of a Space, for this machine; on another port if this is taken."""
    handler = partial(_Handler, directory=str(folder))
    try:
        server = _Server(('127.0.0.1', port), handler)
    except OSError:
        server = _Server(('127.0.0.1', 0), handler)
    with server:
        yield server
