"""Publish weights of ours on the Hugging Face Hub: a repository each, pushed in one commit.

Each is built in a folder and loaded back before anything is pushed. `ORG/NAME.TAG` holds the shipped file, byte for
byte, as model.safetensors, config.json for timm and transformers, the card, the log and curves of training, ONNX files
(web.py) and example images.
"""
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import CommitOperationAdd, EvalResult, HfApi, ModelCardData, errors
from huggingface_hub.utils import validate_repo_id
from timm.models._hub import save_config_for_hf
from torch import nn

from ..data.datasets import DATASETS
from ..data.sources import Source
from ..errors import ZooError, nearest
from ..measure.bench import open_bench_source
from ..measure.prediction import label_names
from ..recipes import RECIPES
from ..runtime.files import naming_unwritable, written_whole
from ..runtime.packaged import read_packaged
from ..training.run_dir import Run, read_log
from ..weights import Weight, catalogue, read_weights, seal_config
from ..weights.catalogue import FOLDER
from ..weights.resolve import resolve
from .cards import card, recipe_text
from .demo import write_examples
from .web import write_for_the_web

_USAGE = '''## Usage

With `pip install tinyvit-zoo`:

```python
import timm
import tinyvit_zoo  # registers the architecture
import torch
from PIL import Image

model = timm.create_model('hf-hub:{repo_id}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open('image.png').convert('RGB')
with torch.inference_mode():
    output = model(transform(image)[None])
'''
_CLASSES = '''probability, index = output.softmax(-1).max(-1)
print(model.pretrained_cfg['label_names'][index.item()], probability.item())
```

The same with transformers:

```python
import tinyvit_zoo
from transformers import pipeline

print(pipeline('image-classification', '{repo_id}')('image.png'))
```
'''
_FEATURES = '''print(output.shape)  # features: there is no classifier
```
'''


def publish(weights: Sequence[Weight], namespace: str, output: Path | None, data: Sequence[str] = ()) -> Iterator[str]:
    """Push a repository for each of the weights, or write it below `output`; build all first; yield a line for each.

    `data`: `[KEY=]SOURCE` of what the weights were trained on, to calibrate 8 bits by.
    """
    repositories = {f'{namespace}/{weight.name}': weight for weight in weights}
    try:
        if '/' in namespace:
            raise errors.HFValidationError
        for repo_id in repositories:
            validate_repo_id(repo_id)
    except errors.HFValidationError as e:
        raise ZooError(f'{namespace!r} is not a namespace of the Hub: give an organization or a user.') from e
    for target in (output / repo_id for repo_id in repositories) if output else ():
        if target.exists():
            raise ZooError(f'{target} already exists: remove it or choose another --output.')
    sources = _sources(weights, data)
    with tempfile.TemporaryDirectory() as temp:
        folders = {repo_id: Path(temp, weight.name) for repo_id, weight in repositories.items()}
        without = {}
        for repo_id, folder in folders.items():
            weight = repositories[repo_id]
            with naming_unwritable(folder):
                without[repo_id] = build_repository(weight, repo_id, folder, sources.get(weight.dataset))
        api = HfApi(token=True, library_name='tinyvit_zoo')     # True: the token of the machine, which must be there
        for repo_id, folder in folders.items():
            if not output:
                yield f'{push(api, folder, repo_id)} {api.endpoint}/{repo_id}{without[repo_id]}'
                continue
            with naming_unwritable(output / namespace):
                (output / namespace).mkdir(parents=True, exist_ok=True)
            with written_whole(output / repo_id) as partial:
                shutil.copytree(folder, partial)
            yield f'written {output / repo_id}{without[repo_id]}'


def _sources(weights: Sequence[Weight], data: Sequence[str]) -> dict[str, Source]:
    """Open what was given, and the data that need no files, for weights trained on it; by key of the table."""
    keys, sources = {weight.dataset for weight in weights}, {}
    for spec in data:
        source = open_bench_source(spec, 'test')
        if not source.info or source.info.key not in keys:
            raise ZooError(f'None of the weights was trained on {source.name}: give --data of '
                           f'{" or ".join(sorted(DATASETS[key].spec for key in keys))}.')
        sources[source.info.key] = source
    for key in keys - sources.keys():
        if not DATASETS[key].place:
            with suppress(ZooError):    # its library is not installed
                sources[key] = open_bench_source(DATASETS[key].spec, 'test')
    return sources


def shipped(name: str | None = None) -> list[Weight]:
    """Return our weights that ship with the package, or the one of this name; ZooError for any other."""
    ours = {weight.name: weight for weight in catalogue().values() if weight.ours and weight.file}
    if not name or name in ours:
        return [ours[name]] if name else list(ours.values())
    if weight := catalogue().get(name):
        raise ZooError(f'{name} is not ours to publish ({weight.origin}, {weight.source}): only shipped weights are.')
    raise ZooError(f'There are no weights {name!r} to publish.{nearest(name, ours)} '
                   f'There are: {", ".join(ours) or "none yet"}.')


def build_repository(weight: Weight, repo_id: str, folder: Path, source: Source | None = None) -> str:
    """Write a new folder with the files of the repository, and load it back; return what was left out and why."""
    if not (weight.measured and weight.trained):
        raise ZooError(f'{weight.name} has no measured figures or no training log, which its card needs.')
    model = timm.create_model(weight.name, pretrained=True)  # refuses a file that is not the catalogue's
    folder.mkdir(parents=True)
    shutil.copyfile(FOLDER / weight.file, folder / 'model.safetensors')
    log = read_packaged(f'weights/{weight.trained["log"]}')
    (folder / 'log.jsonl').write_bytes(log)
    run = Run(folder, quiet=True)
    run.rows = read_log(folder)
    run.draw()
    if not (folder / 'curves.png').exists():
        raise ZooError("The training's curves are drawn by matplotlib: pip install 'tinyvit-zoo[train]'.")
    config = _write_config(model, folder)
    web, without = write_for_the_web(weight, config, repo_id, folder, source)
    examples = write_examples([resolve(weight.name)], folder / 'examples', config['label_names'] or ('none',))
    (folder / 'README.md').write_text(readme(weight, model, repo_id, web, examples), encoding='utf-8')
    _check_same(weight, model, folder)
    return without


def _write_config(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Write timm's config beside the weights, as transformers needs it; return it.

    Labels on top, fp32 for a file in half precision.
    """
    path = folder / 'config.json'
    names = label_names(model.pretrained_cfg) or None
    save_config_for_hf(model, str(path), model_config={'label_names': names, 'dtype': 'float32'})
    config = json.loads(path.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)  # transformers would give it to create_model twice
    if names:
        config['id2label'] = {str(i): name for i, name in enumerate(names)}     # of transformers.js
    path.write_text(json.dumps(seal_config(config, folder / 'model.safetensors'), indent=2) + '\n', encoding='utf-8')
    return config


def _check_same(weight: Weight, model: nn.Module, folder: Path) -> None:
    """Raise ZooError unless timm and transformers (which reads the file directly) load the package's tensors."""
    expected = model.state_dict()
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    for tensors in (loaded, read_weights(folder / 'model.safetensors')):
        wrong = tensors.keys() ^ expected.keys()
        wrong |= {name for name in tensors.keys() - wrong
                  if not torch.equal(tensors[name], expected[name].to(tensors[name].dtype))}
        if wrong:
            raise ZooError(f'{weight.file} would not load from the Hub as from here ({", ".join(sorted(wrong)[:3])}): '
                           f'ship it again with the tensor names of {weight.architecture}.')


def readme(weight: Weight, model: nn.Module, repo_id: str, web: str, examples: Sequence[Mapping[str, str]]) -> str:
    """Return the card of the Hub: front matter, the card, usage, the recipe, the curves."""
    usage = _USAGE + (_FEATURES if weight.encoder else _CLASSES)
    return '\n'.join([
        f'---\n{_front_matter(weight, model, repo_id, examples)}\n---\n',
        f'# {weight.name}\n',
        card(weight),
        usage.replace('{repo_id}', repo_id),
        *([web] if web else []),
        f'## Recipe\n\n```text\n{recipe_text(weight.recipe)}\n```\n',
        '## Training\n\n![Loss and accuracy over the epochs](curves.png)\n'])


def _base_model(weight: Weight, repo_id: str) -> str | None:
    """Return the repository of the weights that the training began with, if they have one."""
    recipe = RECIPES.get(weight.recipe)
    base = catalogue().get(recipe.from_weights) if recipe else None
    if base and base.file and base.ours:
        return f'{repo_id.partition("/")[0]}/{base.name}'
    return base.hf_hub_id or None if base else None


def _front_matter(weight: Weight, model: nn.Module, repo_id: str, examples: Sequence[Mapping[str, str]]) -> str:
    figures: Mapping[str, Any] = weight.measured or {}
    kinds = {'top1': ('accuracy', 'Top-1 accuracy'), 'top5': ('accuracy', 'Top-5 accuracy'), 'loss': ('loss', 'Loss')}
    results = [
        EvalResult(
            task_type='image-classification', task_name='Image classification',
            dataset_type=weight.data.hub_id or weight.dataset, dataset_name=weight.data.title,
            dataset_split=figures['on'].partition(' ')[0], metric_type=kind, metric_name=title,
            metric_value=round(figures[key] / 100, 6) if kind == 'accuracy' else figures[key])  # the Hub's are 0 to 1
        for key, (kind, title) in kinds.items() if key in figures]
    task = 'image-feature-extraction' if weight.encoder else 'image-classification'
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return ModelCardData(license=cfg['license'], library_name='timm', pipeline_tag=task,
                         tags=[task, 'timm', 'transformers', 'tinyvit_zoo', cfg['paper_ids'].lower()],
                         datasets=[weight.data.hub_id] if weight.data.hub_id else None, model_name=weight.name,
                         base_model=_base_model(weight, repo_id), eval_results=results,
                         widget=[{'src': each['file'], 'example_title': each['title']} for each in examples] or None,
                         ).to_yaml()


def push(api: HfApi, folder: Path, repo_id: str) -> str:
    """Make one commit of all files that differ; return 'published', 'updated' or 'unchanged'."""
    # on failure an existing repository is left as it was, and a new one is deleted again
    creating = created = False
    try:
        head = None
        with suppress(errors.RepositoryNotFoundError):
            head = api.model_info(repo_id).sha
        if head is None:
            creating = True
            api.create_repo(repo_id)
            created = True
        files = [CommitOperationAdd(path.relative_to(folder).as_posix(), path)
                 for path in sorted(folder.rglob('*')) if path.is_file()]
        message = f'{"Add" if created else "Update"} {repo_id.partition("/")[2]}'
        commit = api.create_commit(repo_id, files, commit_message=message, parent_commit=head)
    except BaseException as e:
        # unanswered: the repository may exist; refused: it is not ours
        left = created or (creating and not 400 <= _status(e) < 500)
        if left:
            with suppress(Exception):  # the first error is reported
                api.delete_repo(repo_id, missing_ok=True)
                left = False
        if not isinstance(e, Exception):
            raise
        after = f'An empty {repo_id} may remain there' if left else 'Nothing was published or changed'
        raise ZooError(f'{repo_id} was not pushed: {_reason(e, api)} {after}; the same command can be repeated.') from e
    return 'published' if created else 'unchanged' if commit.oid == head else 'updated'


def _status(error: BaseException | None) -> int:
    """Return the HTTP status behind an error, 0 if there was no answer."""
    while error is not None:
        if (response := getattr(error, 'response', None)) is not None:
            return int(response.status_code)
        error = error.__cause__
    return 0


_ADVICE = {
    401: 'the token is unknown: run `hf auth login`, or set HF_TOKEN.',
    403: 'the token may not write there: use your own namespace, or a token with write access.',
    404: 'not found with this token: check the namespace and the token.',
    409: 'it was created meanwhile: try again.',
    412: 'it was changed meanwhile: try again.',
    429: 'too many requests: wait some minutes.',
}


def _reason(error: Exception, api: HfApi) -> str:
    """Return the error and the advice in one line, without the token."""
    if isinstance(error, errors.LocalTokenNotFoundError):
        return 'there is no token: run `hf auth login`, or set HF_TOKEN.'
    if isinstance(error, errors.OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set: unset it, or use --dry-run.'
    if status := _status(error):
        other = 'the server failed: try again later.' if status >= 500 else 'the request was refused.'
        return f'{api.endpoint} returned {status}, {_ADVICE.get(status, other)}'
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f'{api.endpoint} cannot be reached, or broke off ({type(cause).__name__}): try again.'
