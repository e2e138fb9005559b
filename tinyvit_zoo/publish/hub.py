"""`tinyvit-zoo publish`: weights of ours as repositories on the Hugging Face Hub, each pushed in one commit.

A repository is built in a folder and loaded back from it before anything is pushed. What the Hub then holds under
`ORG/NAME.TAG`: the shipped weights file, byte for byte, as model.safetensors; config.json, for timm and transformers;
README.md, the card; log.jsonl and curves.png of the training.
"""
from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ZooError, nearest
from ..runtime.files import written_whole

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from torch import nn

    from ..weights import Weight

__all__ = ['build_repository', 'publish', 'push', 'shipped']

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


def publish(weights: Sequence[Weight], namespace: str, output: Path | None) -> Iterator[str]:
    """Push a repository for each of the weights, or write it below `output`; yield a line for each.

    All are built before the first is pushed.
    """
    repo_ids = {weight.name: _repo_id(namespace, weight.name) for weight in weights}
    if output:
        _check_free(output / repo_id for repo_id in repo_ids.values())
    with tempfile.TemporaryDirectory() as temp:
        folders = {repo_ids[weight.name]: Path(temp, weight.name) for weight in weights}
        for weight in weights:
            build_repository(weight, repo_ids[weight.name], folders[repo_ids[weight.name]])
        if output:
            yield from (_keep(folder, output / repo_id) for repo_id, folder in folders.items())
            return
        from huggingface_hub import HfApi
        api = HfApi(token=True, library_name='tinyvit_zoo')  # True: the token that the client finds, or its complaint
        for repo_id, folder in folders.items():
            yield f'{push(api, folder, repo_id)} {api.endpoint}/{repo_id}'


def shipped(name: str | None = None) -> list[Weight]:
    """Return our weights that ship with the package, or the one of this name; ZooError for any other."""
    from ..weights import catalogue

    ours = {weight.name: weight for weight in catalogue().values() if weight.ours and weight.file}
    if not name:
        return list(ours.values())
    if name in ours:
        return [ours[name]]
    if weight := catalogue().get(name):
        raise ZooError(f'{name} is not ours to publish ({weight.origin}, {weight.source}): only weights that were '
                       f'trained here and ship with the package are.')
    raise ZooError(f'There are no weights {name!r} to publish.{nearest(name, ours)} '
                   f'There are: {", ".join(ours) or "none yet"}.')


def _repo_id(namespace: str, name: str) -> str:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if '/' in namespace:
            raise HFValidationError
        validate_repo_id(f'{namespace}/{name}')
    except HFValidationError as e:
        raise ZooError(f'{namespace!r} cannot be a namespace of the Hub: name an organization or a user.') from e
    return f'{namespace}/{name}'


# -- a dry run ---------------------------------------------------------------------------------------------------------
def _check_free(targets: Iterable[Path]) -> None:
    for target in targets:
        if target.exists():
            raise ZooError(f'{target} is there already: remove it, or choose another --output.')


def _keep(folder: Path, target: Path) -> str:
    """Copied beside and renamed: whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as partial:
        shutil.copytree(folder, partial)
    return f'written {target}'


# -- what is published -------------------------------------------------------------------------------------------------
def build_repository(weight: Weight, repo_id: str, folder: Path) -> None:
    """Write a new folder with all that the Hub is to hold, and load it back."""
    import timm

    from ..training.run_dir import Run
    from ..weights.catalogue import FOLDER

    if not (weight.measured and weight.trained):
        raise ZooError(f'{weight.name} has no measured figures or no training log, and a card is to have them.')
    model = timm.create_model(weight.name, pretrained=True)  # refuses a file that is not the catalogue's
    folder.mkdir(parents=True)
    shutil.copyfile(FOLDER / weight.file, folder / 'model.safetensors')
    shutil.copyfile(FOLDER / weight.trained['log'], folder / 'log.jsonl')
    Run(folder, quiet=True).draw()
    if not (folder / 'curves.png').exists():
        raise ZooError("The training's curves are drawn by matplotlib: pip install 'tinyvit-zoo[train]'.")
    _write_config(model, folder / 'config.json')
    (folder / 'README.md').write_text(readme(weight, model, repo_id), encoding='utf-8')
    _check_same(weight, model, folder)


def _write_config(model: nn.Module, path: Path) -> None:
    """timm's own, as transformers wants it: labels on top, fp32 although the file is half, the class count once."""
    from timm.models._hub import save_config_for_hf

    from ..measure.prediction import label_names

    names = label_names(model.pretrained_cfg) or None
    save_config_for_hf(model, str(path), model_config={'label_names': names, 'dtype': 'float32'})
    config = json.loads(path.read_text(encoding='utf-8'))
    config.get('model_args', {}).pop('num_classes', None)  # transformers would give it to create_model twice
    path.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def _check_same(weight: Weight, model: nn.Module, folder: Path) -> None:
    """What a user gets is what the package has, by timm and by transformers, which takes the file as it is."""
    import timm
    import torch

    from ..weights import read_weights

    ours = model.state_dict()
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    for found in (loaded, read_weights(folder / 'model.safetensors')):
        wrong = found.keys() ^ ours.keys()
        wrong |= {
            name for name in found.keys() - wrong if not torch.equal(found[name], ours[name].to(found[name].dtype))}
        if wrong:
            raise ZooError(f'{weight.file} would not load from the Hub as from here ({", ".join(sorted(wrong)[:3])}): '
                           f'ship it again, as {weight.architecture} has its tensors.')


def readme(weight: Weight, model: nn.Module, repo_id: str) -> str:
    """The card of the Hub: front matter, the card that MODEL_CARDS.md has too, usage, the recipe, the curves."""
    from .cards import card, recipe_text

    usage = _USAGE + (_FEATURES if weight.encoder else _CLASSES)
    return '\n'.join([
        f'---\n{_front_matter(weight, model)}---\n',
        f'# {weight.name}\n',
        card(weight),
        usage.replace('{repo_id}', repo_id),
        f'## Recipe\n\n```text\n{recipe_text(weight.recipe)}\n```\n',
        '## Training\n\n![Loss and accuracy over the epochs](curves.png)\n'])


def _front_matter(weight: Weight, model: nn.Module) -> str:
    from huggingface_hub import EvalResult, ModelCardData

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
    data = ModelCardData(
        license=cfg['license'], library_name='timm', pipeline_tag=task,
        tags=[task, 'timm', 'transformers', 'tinyvit_zoo', cfg['paper_ids'].lower()],
        datasets=[weight.data.hub_id] if weight.data.hub_id else None,
        model_name=weight.name, eval_results=results)
    return f'{data.to_yaml()}\n'


# -- the Hub -----------------------------------------------------------------------------------------------------------
def push(api: HfApi, folder: Path, repo_id: str) -> str:
    """One commit with all files that differ; returns 'published', 'updated' or 'unchanged'.

    Where it fails, a repository that was there is as it was, and one that was not is deleted again.
    """
    from huggingface_hub import CommitOperationAdd

    creating = created = False
    try:
        head = _head(api, repo_id)
        if head is None:
            creating = True
            api.create_repo(repo_id)
            created = True
        files = [CommitOperationAdd(path.name, path) for path in sorted(folder.iterdir())]
        message = f'{"Add" if created else "Update"} {repo_id.partition("/")[2]}'
        commit = api.create_commit(repo_id, files, commit_message=message, parent_commit=head)
    except BaseException as e:
        # where no answer to the creation came, the repository may be there; where it was refused, it is not ours
        left = (created or (creating and not 400 <= _status(e) < 500)) and not _deleted(api, repo_id)
        if not isinstance(e, Exception):
            raise
        after = f'An empty {repo_id} may be left there' if left else 'Nothing was published or changed'
        raise ZooError(f'{repo_id} was not pushed: {_reason(e, api)} {after}; the same command can be repeated.') from e
    return 'published' if created else 'unchanged' if commit.oid == head else 'updated'


def _head(api: HfApi, repo_id: str) -> str | None:
    """The last commit; None where there is no such repository."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.model_info(repo_id).sha
    except RepositoryNotFoundError:
        return None


def _deleted(api: HfApi, repo_id: str) -> bool:
    try:
        api.delete_repo(repo_id, missing_ok=True)
    except Exception:  # what went wrong first is what the caller is told
        return False
    return True


def _status(error: BaseException | None) -> int:
    """The HTTP status behind an error; 0 where there was no answer."""
    while error is not None:
        response = getattr(error, 'response', None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return 0


def _reason(error: Exception, api: HfApi) -> str:
    """What was wrong and what to do, in one line without the token."""
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalTokenNotFoundError):
        return 'there is no token: run `hf auth login`, or set HF_TOKEN.'
    if isinstance(error, OfflineModeIsEnabled):
        return 'HF_HUB_OFFLINE is set: unset it, or take --dry-run.'
    status = _status(error)
    if not status:
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        return f'{api.endpoint} cannot be reached, or broke off ({type(error).__name__}): try again.'
    advice = {
        401: 'it does not know the token: run `hf auth login`, or set HF_TOKEN.',
        403: 'the token may not write there: take a namespace of yours, or a token with write access to it.',
        404: 'there is nothing there that the token may see: check the namespace and the token.',
        409: 'somebody created it meanwhile: try again.',
        412: 'somebody changed it meanwhile: try again.',
        429: 'too many requests: wait some minutes.',
    }.get(status, 'it is out of order: try again later.' if status >= 500 else 'it does not take what was sent.')
    return f'{api.endpoint} says {status}, {advice}'
