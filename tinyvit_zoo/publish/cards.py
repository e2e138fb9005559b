"""Cards of weights in Markdown, for MODEL_CARDS.md and the Hub, and recipes as text."""
from __future__ import annotations

import sys
import textwrap
from functools import cache
from typing import TYPE_CHECKING, Any

from ..data.datasets import spec_of
from ..recipes import PRETRAININGS, BaseRecipe, Pretraining, find_pretraining, find_recipe
from ..recipes.settings import settings
from ..weights.catalogue import Weight, catalogue

if TYPE_CHECKING:
    from ..measure.counting import Count

_PAPERS = {
    'arXiv:2104.05704': 'A. Hassani, S. Walton, N. Shah, A. Abuduweili, J. Li, H. Shi: Escaping the Big Data Paradigm '
                        'with Compact Transformers, 2021',
    'arXiv:2112.13492': 'S. H. Lee, S. Lee, B. C. Song: Vision Transformer for Small-Size Datasets, 2021',
    'arXiv:2210.07240': 'H. Gani, M. Naseer, M. Yaqub: How to Train Vision Transformer on Small-scale Datasets?, 2022',
    'arXiv:2402.03752': 'J. X. Tan: Pre-training of Lightweight Vision Transformers on Small Datasets with Minimally '
                        'Scaled Images, 2024',
    'arXiv:2205.14443': 'S. Wang, J. Gao, Z. Li, X. Zhang, W. Hu: A Closer Look at Self-Supervised Lightweight Vision '
                        'Transformers, 2022',
}


def card(weight: Weight) -> str:
    """Return all that is known of the weights as a table, without a title."""
    rows = ''.join(f'| {title} | {text} |\n' for title, text in _rows(weight).items() if text)
    return f'| | |\n|---|---|\n{rows}'


def _rows(weight: Weight) -> dict[str, str]:
    import timm

    cfg, counted = timm.get_pretrained_cfg(weight.name), cost(weight)
    family = sys.modules[timm.models.model_entrypoint(weight.architecture).__module__].__doc__ or ''
    default = timm.get_pretrained_cfg(weight.architecture).tag == weight.tag
    size = ' x '.join(map(str, weight.input_size))
    return {
        'use': _use(weight),
        'architecture': f'`{weight.architecture}`{", its default weights" if default else ""}. '
                        f'{family.splitlines()[0].rstrip(".")}. Paper: {cfg.paper_name} ({cfg.paper_ids})',
        'file': _file(weight),
        'training data': weight.data.about,
        'recipe': _recipe(weight),
        'preprocessing': f'{size} pixels from 0 to 1, `crop_pct` {cfg.crop_pct:g}, {cfg.interpolation} resizing; '
                         f'mean {_numbers(cfg.mean)}, std {_numbers(cfg.std)}',
        'measured': _measured(weight),
        'published': _published(weight),
        'difference': _difference(weight),
        'parameters, MACs': f'{counted.params:,}; {counted.macs / 1e6:,.2f} M multiply-adds per image, attention '
                            f'included, norms and activations not',
        'throughput': _throughput(weight),
        'limits': _limits(weight),
        'note': weight.note,
        'licence': _licence(weight, cfg.license),
        'citation': f'{_PAPERS[cfg.paper_ids]}, {cfg.paper_ids}',
    }


def _use(weight: Weight) -> str:
    data = weight.data
    if weight.encoder:
        return f'Features of images like those of {data.title}; a start for training on labels. No classifier.'
    names = f' ({", ".join(data.label_names)})' if 0 < len(data.label_names) <= 10 else ''
    return (f'Classification into the {data.num_classes} classes of {data.title}{names}; fine-tuning on images of '
            f"one's own; comparison of methods.")


def _file(weight: Weight) -> str:
    if weight.file:
        return f'`{weight.file}`, ships with the package, half precision; sha256 `{weight.sha256}`'
    digest = f'sha256 `{weight.sha256}`' if weight.sha256 else 'digest unknown'
    place = f'<{weight.url}>' if weight.url else f'`{weight.hf_hub_id}` on the Hugging Face Hub'
    return f'{place}, downloaded on first use; {digest}'


def _recipe(weight: Weight) -> str:
    run = weight.trained
    if not run:
        return f"{weight.recipe}: the authors' training ({weight.origin})"
    return (f'`{weight.recipe}` (`tinyvit-zoo recipes {weight.recipe}` shows it): `{run["command"]}`; '
            f'{run["minutes"]:g} minutes on {run["machine"]}, {run["date"]}. Log: `weights/{run["log"]}`')


def _measured(weight: Weight) -> str:
    figures = weight.measured
    if not figures:
        return 'not by us'
    top5 = f', {figures["top5"]:.2f} % top-5' if 'top5' in figures else ''
    return (f'{figures["top1"]:.2f} % top-1{top5}, loss {figures["loss"]:.4f}, {figures["on"]} '
            f'({figures["images"]:,}), the file as it is loaded, fp32; {figures["date"]}, {figures["machine"]}: '
            f'`{figures["command"]}`')


def _difference(weight: Weight) -> str:
    """Compare the measured figure with the best that is published for the architecture on the same dataset."""
    same = (weight.architecture, weight.dataset, weight.input_size)
    figures = [(w.published['top1'], w.name) for w in catalogue().values()
               if w.published and (w.architecture, w.dataset, w.input_size) == same]
    if not figures or not weight.measured:
        return ''
    best, name = max(figures)
    points = weight.measured['top1'] - best
    of = 'its recipe' if name == weight.name else f'`{name}`'
    return f'{abs(points):.2f} points {"above" if points >= 0 else "below"} the {best:.2f} % published for {of}'


def _published(weight: Weight) -> str:
    if not weight.published:
        return 'no figure'
    of = "the recipe's, trained by its authors: " if weight.ours else ''
    return f'{of}{weight.published["top1"]:.2f} % top-1 ({weight.published["source"]})'


def _throughput(weight: Weight) -> str:
    speed = weight.measured and weight.measured.get('throughput')
    if not speed:
        return 'not measured'
    return (f'{speed["images_per_second"]:,.0f} images/s, inference, fp32, batch {speed["batch_size"]}; '
            f'{speed["machine"]}, {speed["date"]}')


def _limits(weight: Weight) -> str:
    size = weight.input_size[-1]
    classes = '' if weight.encoder else ' Every image is assigned to one of its classes.'
    return (f'Trained at {size} px: finer detail of larger images is lost, smaller images were not seen.{classes} '
            f'Not for decisions about people. Not tested on noisy, shifted or attacked images.')


def _licence(weight: Weight, licence: str) -> str:
    if weight.ours:
        return f"{licence} for the weights; the images remain their makers'"
    return 'the authors state none: ask them' if licence == 'unknown' else f"{licence}, of the authors' repository"


def _numbers(values: tuple[float, ...]) -> str:
    return ', '.join(f'{value:g}' for value in values)


def recipe_text(name: str) -> str:
    """Show a recipe in full: its origin, its figures, its command and every setting."""
    recipe: BaseRecipe = find_pretraining(name) if name in PRETRAININGS else find_recipe(name)
    about = [f'method: {recipe.method}' if isinstance(recipe, Pretraining) else (
        f'published: {recipe.published or "no figure"}')]
    weight = catalogue().get(name)
    if weight and weight.measured and weight.trained:
        figures, run = weight.measured, weight.trained
        about += [f'measured: {figures["top1"]:.2f} % of {figures["images"]:,} {figures["on"]}; '
                  f'{run["minutes"]:g} minutes on {run["machine"]}']
    return '\n'.join([
        name, textwrap.fill(recipe.about, 100), *about, f'command: {recipe.command(spec_of(recipe.dataset))}', '',
        *(f'{key:20} {getattr(recipe, key)}' for key in settings(type(recipe)))])


def cost(weight: Weight) -> Count:
    """Count parameters and multiply-adds per image, at the size and with the classes of the weights."""
    return _counted(weight.architecture, weight.input_size, 0 if weight.encoder else weight.data.num_classes)


@cache
def _counted(architecture: str, input_size: tuple[int, int, int], num_classes: int) -> Count:
    import timm

    from ..measure.counting import count

    model: Any = timm.create_model(
        architecture, device='meta', img_size=input_size[1:], in_chans=input_size[0], num_classes=num_classes)
    return count(model)


def in_order() -> list[Weight]:
    """Return all weights, by architecture, the default of each first."""
    import timm

    from ..models import list_models

    names = [name for model in list_models() for name in timm.models.get_arch_pretrained_cfgs(model)]
    return [catalogue()[name] for name in names if name in catalogue()]
