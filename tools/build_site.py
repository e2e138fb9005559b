"""Make the site's generated pages: a hook of mkdocs (mkdocs.yml). Nothing is written into docs/."""
from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import update_docs

import tinyvit_zoo
from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.interpret.analyses import unsupported
from tinyvit_zoo.measure.counting import Count
from tinyvit_zoo.models.mae_vit import CHOSEN
from tinyvit_zoo.publish import cards
from tinyvit_zoo.publish.cards import card
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES, BaseRecipe, Pretraining, Recipe
from tinyvit_zoo.recipes.settings import option, settings
from tinyvit_zoo.training import cost
from tinyvit_zoo.weights import Weight, catalogue

training_cost = cache(cards.training_cost)     # a second each
FAMILIES = {    # module: title, what it is
    'compact': ('Compact transformers', '''ViT-Lite, CVT and CCT, named `family_depth_tokenizer`: `cct_7_3x1` has 7
blocks and one 3x3 convolution as tokenizer, `vit_lite_7_4` has patches of 4 x 4. `pos_embed=` takes `'learnable'`,
`'sine'` or `'none'`.'''),
    'sl_': ('Shifted patches and locality attention', '''ViT, CaiT, PiT, Swin and T2T, each plain (`plain_*`) and with
both add-ons (`sl_*`); `_64` is for 64 pixels. `spt=` and `lsa=` switch each add-on: [what they do](../spt_lsa.md).'''),
    'ssl_small': ('Self-supervised small ViTs', '''Models that take images of several sizes.
`pretrained=True` loads the authors' self-distilled encoder without a classifier; `num_classes=10` adds a new one.'''),
    'mae_vit': ('MAE-ViT', '''A plain ViT for 36 pixels with patches of 3, for
[pre-training](../self_supervised.md).'''),
    'mae_lite': ('MAE-Lite', '''Small ViTs for 224 pixels, pre-trained on ImageNet. All but `_rpe` are timm's
VisionTransformer. Tags that end in epochs are encoders; the others are fine-tuned on ImageNet.'''),
    'fast_cnn': ('Fast CNNs', 'Small convolutional networks, as baselines and teachers.'),
}
PAGE = '''# {name}
{about} From [{paper}]({link}).

{layout}

| parameters | multiply-adds | activations | input | classes |
|---|---|---|---|---|
| {params:,} | {macs:,.1f} M | {activations:,.2f} M | {size} | {classes} |
{speed}
## Load
```python
import timm

import tinyvit_zoo

model = timm.create_model('{name}', pretrained={pretrained}, num_classes=4)
```
```bash
tinyvit-zoo train --model {name} --data folder:photos --minutes 10
tinyvit-zoo export {name}{untrained} model.onnx
```

## Common tasks
| task | code |
|---|---|
| change the image size | {sizes} |
| grey images or more channels | `in_chans=1`: weights of the first layer are adapted{t2t} |
| change the classes | `num_classes=4` replaces the head; `0` removes it: the output is [B, {width}] |
| get features | `model.forward_features(images)`: [B, {features}]; [feature maps](../ecosystem.md#timm-features_only) |
| train only the head | `model.requires_grad_(False)`, then `model.get_classifier().requires_grad_(True)` |
| fine-tune | the command above, or any training loop; `--layer-decay 0.75` lowers the rate layer by layer |
| export | the command above; [other formats](../export.md) |

{weights}{recipes}{more}'''
CHOICES = '''## Our choices
Neither code nor weights were published. Where the paper leaves settings open, we chose:

| | |
|---|---|
{rows}
The paper says "below 0.27G" multiply-adds. An image takes {true:.3f}G: linear layers, convolution and both
products of attention. A counter that skips the attention modules finds {blind:.3f}G, which explains the paper's figure.
'''
REASONS = {
    'num_heads': '16 channels per head, as in other ViTs of this width',
    'qkv_bias': 'the paper has none in some layers; for keys it has no effect, for values it joins the projection',
    'global_pool': 'the class token is there for classification',
    'weight_init': 'truncated normal of .02, as usual for ViTs',
}


# -- mkdocs ------------------------------------------------------------------------------------------------------------
def on_config(config: Any) -> None:
    """Put the models into the navigation, a section for each family."""
    models = [{title: [{name: f'models/{name}.md'} for name in names]} for title, names in families().items()]
    config.nav = [{'Models': ['models/index.md', *models]} if 'Models' in entry else entry for entry in config.nav]


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for path in (update_docs.ROOT / 'examples').glob('photos/*.jpg'):
        files.append(File.generated(config, f'images/photos/{path.name}', content=path.read_bytes()))
    return files


def pages() -> dict[str, str]:
    """Return the generated pages, by path."""
    found = {f'models/{name}.md': model_page(name) for name in tinyvit_zoo.list_models()}
    found |= {'models/index.md': models_page(), 'datasets.md': datasets_page(), 'recipe_list.md': recipes_page()}
    for name in ('CHANGELOG.md', 'CONTRIBUTING.md'):
        text = (update_docs.ROOT / name).read_text(encoding='utf-8')
        found[name.lower()] = re.sub(r'\]\(docs/', '](', text)
    return found


# -- models ------------------------------------------------------------------------------------------------------------
def module_of(name: str) -> str:
    return timm.models.model_entrypoint(name).__module__.rpartition('.')[2]


@cache
def families() -> dict[str, list[str]]:
    """Return the models of each family, by its title."""
    found: dict[str, list[str]] = {title: [] for title, _ in FAMILIES.values()}
    for name in tinyvit_zoo.list_models():
        found[next(title for stem, (title, _) in FAMILIES.items() if module_of(name).startswith(stem))].append(name)
    return found


def models_page() -> str:
    text = ('# Models\nTop-1 accuracy in percent: *published* by the papers, *measured* by us. `pretrained=True` loads '
            'the weights in bold. Weights with a measured figure ship with the package.\n')
    for title, about in FAMILIES.values():
        rows = ''.join(update_docs.rows(name) for name in families()[title])
        rows = re.sub(r'`((\w+)(\.\w+)?)`', r'[`\1`](\2.md)', rows)
        text += f'\n## {title}\n{about}\n\n{update_docs.HEAD}{rows}'
    return text


def model_page(name: str) -> str:
    cfg, model = timm.get_pretrained_cfg(name), timm.create_model(name, device='meta')
    weights, family = update_docs.weights_of(name), sys.modules[timm.models.model_entrypoint(name).__module__]
    size = cfg.input_size[1:]
    counted = cost.counted(name, size[0], model.num_classes)
    images = torch.zeros(1, 3, *size, device='meta')
    with recorded_shapes(model) as shapes, torch.no_grad():
        model.eval()(images)
        features = model.forward_features(images)
    more = _choices(model, counted) if module_of(name) == 'mae_vit' else ''
    return PAGE.format(
        name=name, about=_sentence(family.__doc__ or ''),
        paper=cfg.paper_name, link=f'https://arxiv.org/abs/{cfg.paper_ids.removeprefix("arXiv:")}',
        layout=layout(model, counted, shapes), untrained='' if weights else '.untrained', sizes=_sizes(name, model),
        features=', '.join(map(str, features.shape[1:])), width=model.num_features,
        t2t=', but only to 3 channels' if '_t2t' in name else '', params=counted.params, macs=counted.macs / 1e6,
        activations=counted.activations / 1e6, size=' x '.join(map(str, counted.input_size)),
        classes=model.num_classes or 'none', speed=_speed(weights), pretrained=bool(weights),
        weights=_weights(weights),
        recipes=_recipes(name), more=f'{_analyses(model)}{more}')


def _sizes(name: str, model: nn.Module) -> str:
    """Return which image sizes the model takes, and how."""
    own = model.pretrained_cfg['input_size'][-1]  # type: ignore[index]
    for least in (4, 8, 16, 32):
        with suppress(Exception), torch.no_grad():
            images = torch.zeros(1, 3, least, least, device='meta')
            timm.create_model(name, img_size=least, device='meta').eval()(images)
            break
    text = f'`img_size=64`, from {least} pixels; positions of the weights are resized'
    with suppress(Exception), torch.no_grad():
        model(torch.zeros(1, 3, own + 16, own + 16, device='meta'))
        text = f'not needed: the model takes images of any size from {least} pixels'
    return text


def _speed(weights: list[Weight]) -> str:
    """Return the measured speed of the first weights that have one, as a line of the table."""
    measured = next((w.measured['throughput'] for w in weights if w.measured and 'throughput' in w.measured), None)
    return (f'\n**Speed**: {measured["images_per_second"]:,.0f} images/s in inference (fp32, batch '
            f'{measured["batch_size"]}; {measured["machine"]}, {measured["date"]}).\n') if measured else ''


def _sentence(text: str) -> str:
    return f'{text.strip().splitlines()[0].rstrip(".")}.'


def _weights(weights: list[Weight]) -> str:
    if not weights:
        return '## Weights\nNone yet: `pretrained=True` is an error. Train by a recipe below, or on your images.\n\n'
    text = f'## Weights\n{update_docs.HEAD}{"".join(update_docs.row(w.name, w.default) for w in weights)}\n'
    for weight in weights:
        body = card(weight)
        if weight.trained:
            body += f'\n![Loss and accuracy over the epochs](../images/curves/{weight.name}.png)\n'
        text += f'???{"+" if weight.default else ""} note "Card of {weight.name}"\n{textwrap.indent(body, "    ")}\n'
    return text


def _recipes(name: str) -> str:
    own = [r for r in (*RECIPES.values(), *PRETRAININGS.values()) if r.model == name]
    return f'## Recipes\n{_recipe_table(own)}\n' if own else ''


def _analyses(model: nn.Module) -> str:
    """Return which analyses the model supports, and why not the others."""
    rows = ''.join(f'| `{kind}` | {reason or "yes"} |\n' for kind, reason in unsupported(model).items())
    return f'## Analyses\n[`tinyvit-zoo analyze`](../analysis.md) supports:\n\n| | |\n|---|---|\n{rows}\n'


def _choices(model: Any, counted: Count) -> str:
    """Show the choices, and the two counts that explain the paper's."""
    mlps = model.pos_embed.shape[1] * sum(
        p.numel() for name, p in model.named_parameters() if '.mlp.' in name and p.ndim == 2)
    rows = ''.join(f'| `{name}={value!r}` | {REASONS[name]} |\n' for name, value in CHOSEN.items())
    return CHOICES.format(rows=rows, true=counted.macs / 1e9, blind=(counted.parts['patch_embed'].macs + mlps) / 1e9)


@contextmanager
def recorded_shapes(model: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    """Record the shape that each child of the model puts out, without the batch."""
    shapes: dict[str, tuple[int, ...]] = {}

    def hook(name: str) -> Callable[..., None]:
        def seen(module: nn.Module, given: Any, out: Any) -> None:
            while isinstance(out, (tuple, list)) and out:
                out = out[0]
            if hasattr(out, 'shape'):
                shapes[name] = tuple(out.shape[1:])
        return seen

    handles = [module.register_forward_hook(hook(name)) for name, child in model.named_children()
               for module in ([child] if not isinstance(child, nn.ModuleList) else child)]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def layout(model: nn.Module, counted: Count, shapes: dict[str, tuple[int, ...]]) -> str:
    """Draw the model as a column of boxes: each part with its output and its share of the multiply-adds."""
    def box(name: str, text: str, shape: tuple[int, ...], share: float = 0.) -> str:
        out = ' × '.join(map(str, shape))
        return (f'<li style="--share: {share:.1%}"><b>{escape(name)}</b><span>{escape(text)}</span>'
                f'<span>{out}</span></li>')

    boxes = [box('image', '', counted.input_size)]
    for name, child in model.named_children():
        part = counted.parts.get(name)
        if name not in shapes or not (part or name == 'norm'):
            continue
        many = f'{len(child)} × {type(child[0]).__name__}' if isinstance(child, (nn.Sequential, nn.ModuleList)) else \
            type(child).__name__
        params = f', {part.params / 1e6:.2f} M' if part and part.params >= 5e3 else ''
        boxes.append(box(name, f'{many}{params}', shapes[name], part.macs / counted.macs if part else 0.))
    return (f'<ol class="layout">{"".join(boxes)}</ol>\n\nFrom image to classes: each part with its parameters and the '
            f'shape of its output; the bar is its share of the multiply-adds.')


# -- datasets and recipes ----------------------------------------------------------------------------------------------
def datasets_page() -> str:
    text = ('# Datasets\n`--data` takes these by name. For your own images, see [data sources](own_images.md#data); to '
            'add one, [extending](extending.md#a-dataset).\n')
    for data in DATASETS.values():
        weights = [w.name for w in catalogue().values() if w.dataset == data.key]
        links = ', '.join(f'[`{name}`](models/{name.partition(".")[0]}.md)' for name in weights)
        mean, std = (', '.join(f'{v:g}' for v in dict.fromkeys(values)) for values in (data.mean, data.std))
        hub = f'[{data.hub_id}](https://huggingface.co/datasets/{data.hub_id})' if data.hub_id else ''
        rows = {'`--data`': f'`{data.spec}`', 'tag': f'`{data.key}`', 'classes': data.num_classes,
                'training images': f'{data.num_train:,}' if data.num_train else '', 'mean': mean, 'std': std,
                'Hub': hub, 'flipped in training': 'yes' if data.mirrored else 'no', 'weights': links}
        table = ''.join(f'| {title} | {value} |\n' for title, value in rows.items() if value)
        text += f'\n## {data.title}\n{data.about}\n\n| | |\n|---|---|\n{table}'
    return text


def recipes_page() -> str:
    return (f'# All recipes\n`tinyvit-zoo train NAME --data SOURCE` trains the weights of that name; `tinyvit-zoo '
            f'recipes NAME` shows all settings. The cost is in PFLOP: epochs x images x 6 x multiply-adds of one '
            f'image.\n\n## Classifiers\n{_recipe_table(list(RECIPES.values()))}\n'
            f'## Encoders\n`tinyvit-zoo pretrain NAME`; recipes of classifiers that need an encoder run this first.\n\n'
            f'{_recipe_table(list(PRETRAININGS.values()))}\n{_settings(Recipe)}{_settings(Pretraining, Recipe)}')


def _settings(kind: type[BaseRecipe], *known: type[BaseRecipe]) -> str:
    """Return a table of the settings of a kind of recipe, but for those of `known`."""
    shared = {name for each in known for name in settings(each)}
    rows = ''.join(f'| `{option(field.name)}` | {field.metadata["help"]} |\n' for field in dataclasses.fields(kind)
                   if field.name in settings(kind) and field.name not in shared)
    return f'\n## Settings of `{kind.__name__}`\n| option | meaning |\n|---|---|\n{rows}'


def _recipe_table(recipes: list[BaseRecipe]) -> str:
    text = '| recipe | data | cost in PFLOP | published | measured |\n|---|---|---|---|---|\n'
    for recipe in recipes:
        weight, data = catalogue().get(recipe.name), DATASETS.get(recipe.dataset)
        published, pflop = getattr(recipe, 'published', None), training_cost(recipe.name).replace(' PFLOP', '')
        text += (f'| `{recipe.name}` | {data.title if data else ""} | {pflop} | '
                 f'{f"{published:.2f}" if published else ""} | {update_docs.percent(weight and weight.measured)} |\n')
    return text
