"""Cards of weights in Markdown, for the site and the Hub, and recipes as text."""
import textwrap

import timm

from ..data.datasets import spec_of
from ..measure.counting import Count
from ..models import list_models
from ..recipes import PRETRAININGS, RECIPES, BaseRecipe, Pretraining, find_pretraining, find_recipe
from ..recipes.settings import settings
from ..training.cost import before, counted, pflop_of, usual_images
from ..weights.catalogue import Weight, catalogue

_PAPERS = {
    'arXiv:2104.05704': 'A. Hassani, S. Walton, N. Shah, A. Abuduweili, J. Li, H. Shi: Escaping the Big Data Paradigm '
                        'with Compact Transformers, 2021',
    'arXiv:2112.13492': 'S. H. Lee, S. Lee, B. C. Song: Vision Transformer for Small-Size Datasets, 2021',
    'arXiv:2210.07240': 'H. Gani, M. Naseer, M. Yaqub: How to Train Vision Transformer on Small-scale Datasets?, 2022',
    'arXiv:2402.03752': 'J. X. Tan: Pre-training of Lightweight Vision Transformers on Small Datasets with Minimally '
                        'Scaled Images, 2024',
    'arXiv:2205.14443': 'S. Wang, J. Gao, Z. Li, X. Zhang, W. Hu: A Closer Look at Self-Supervised Lightweight Vision '
                        'Transformers, 2022',
    'arXiv:2404.00498': 'K. Jordan: 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024',
}


def card(weight: Weight) -> str:
    """Return the card of the weights, without a title: use, loading, figures, making, limits."""
    rows = {**_figures(weight), **_making(weight)}
    table = ''.join(f'| {title} | {text} |\n' for title, text in rows.items() if text)
    return f'{_use(weight)}\n\n| | |\n|---|---|\n{table}\n{_limits(weight)}\n'


def _use(weight: Weight) -> str:
    data = weight.data
    classes = f' ({", ".join(data.label_names)})' if 0 < len(data.label_names) <= 10 else ''
    if weight.encoder:
        return (f'Extracts features of images like those of {data.title}, as a start for training with labels. It has '
                f'no classifier.')
    return (f'Classifies images into the {data.num_classes} classes of {data.title}{classes}, or serves as a start for '
            f'fine-tuning on your own images.')


def _figures(weight: Weight) -> dict[str, str]:
    """Return how to load the weights, our figures and the published ones, apart, and the cost."""
    ours, paper, counted = weight.measured, weight.published, cost(weight)
    measured = published = throughput = ''
    if ours:
        top5 = f', {ours["top5"]:.2f} % top-5' if 'top5' in ours else ''
        measured = (f'{ours["top1"]:.2f} % top-1{top5}, loss {ours["loss"]:.4f}, {ours["on"]} ({ours["images"]:,}), as '
                    f'loaded, in fp32; {ours["date"]}, {ours["machine"]}: `{ours["command"]}`')
        if speed := ours.get('throughput'):
            throughput = (f'{speed["images_per_second"]:,.0f} images/s, inference, fp32, batch {speed["batch_size"]}; '
                          f'{speed["machine"]}, {speed["date"]}')
    if paper:
        of = "for the authors' training: " if weight.ours else ''
        published = f'{of}{paper["top1"]:.2f} % top-1 ({paper["source"]})'
    default = timm.get_pretrained_cfg(weight.architecture).tag == weight.tag
    return {
        'load': f"`timm.create_model('{weight.name}', pretrained=True)`{'; the default' if default else ''}",
        'measured': measured, 'published': published, 'difference': _difference(weight),
        'size': f'{counted.params:,} parameters; {counted.macs / 1e6:,.2f} M multiply-adds per image, including '
                f'attention',
        'throughput': throughput}


def _difference(weight: Weight) -> str:
    """Compare our figure with the best published one of the same model, data and size."""
    same = (weight.architecture, weight.dataset, weight.input_size)
    figures = [(w.published['top1'], w.name) for w in catalogue().values()
               if w.published and (w.architecture, w.dataset, w.input_size) == same]
    if not (weight.measured and figures):
        return ''
    best, name = max(figures)
    points = weight.measured['top1'] - best
    return (f'{abs(points):.2f} points {"above" if points >= 0 else "below"} the {best:.2f} % published for '
            f'{"its recipe" if name == weight.name else f"`{name}`"}')


def _making(weight: Weight) -> dict[str, str]:
    """Return the data, the training, the file and their terms."""
    cfg, run = timm.get_pretrained_cfg(weight.name), weight.trained
    file = f'`{weight.file}`, ships with the package, half precision; sha256 `{weight.sha256}`'
    if not weight.file:
        place = f'<{weight.url}>' if weight.url else f'`{weight.hf_hub_id}` on the Hugging Face Hub'
        file = f'{place}, downloaded on first use{f"; sha256 `{weight.sha256}`" if weight.sha256 else ""}'
    recipe = f"{weight.recipe}: the authors' training ({weight.origin})"
    if run:
        recipe = (f'`{weight.recipe}` (`tinyvit-zoo recipes {weight.recipe}` shows it): `{run["command"]}`; '
                  f'{run["minutes"]:g} minutes on {run["machine"]}, {run["date"]}. Log: `weights/{run["log"]}`')
    mean, std = (', '.join(f'{value:g}' for value in values) for values in (cfg.mean, cfg.std))
    made = weight.recipe if run else next((
        r.name for r in RECIPES.values() if weight.published and r.published == weight.published['top1']
        and (r.model, r.dataset) == (weight.architecture, weight.dataset)), '')
    licence = f"{cfg.license}, of the authors' repository"
    if weight.ours:
        licence = f"{cfg.license} for the weights; the images keep their own terms"
    elif cfg.license == 'unknown':
        licence = 'none stated by the authors: ask them'
    return {
        'input': f'{" x ".join(map(str, weight.input_size))} pixels from 0 to 1, `crop_pct` {cfg.crop_pct:g}, '
                 f'{cfg.interpolation} resizing; mean {mean}, std {std}',
        'training data': weight.data.about, 'recipe': recipe, 'training cost': training_cost(made) if made else '',
        'file': file, 'licence': licence, 'citation': f'{_PAPERS[cfg.paper_ids]}, {cfg.paper_ids}'}


def _limits(weight: Weight) -> str:
    classes = '' if weight.encoder else ' Every image is assigned to one of its classes.'
    note = f' {weight.note}' if weight.note else ''
    return (f'**Limits.** Trained at {weight.input_size[-1]} px: larger images lose detail, smaller ones were not '
            f'trained on.{classes} Not for decisions about people. Not tested on noisy, shifted or adversarial '
            f'images.{note}')


def recipe_text(name: str) -> str:
    """Show a recipe in full: its origin, its figures, its command and every setting."""
    recipe: BaseRecipe = find_pretraining(name) if name in PRETRAININGS else find_recipe(name)
    lines = [name, textwrap.fill(recipe.about, 100),
             f'method: {recipe.method}' if isinstance(recipe, Pretraining) else
             f'published: {recipe.published or "no figure"}']
    weight = catalogue().get(name)
    lines.append(f'cost: {training_cost(name)}')
    if not (weight and weight.trained):
        lines.append('weights: none of ours yet')
    elif (figures := weight.measured) and (run := weight.trained):
        lines += [f'measured: {figures["top1"]:.2f} % of {figures["images"]:,} {figures["on"]}; '
                  f'{run["minutes"]:g} minutes on {run["machine"]}']
    lines += [f'command: {recipe.command(spec_of(recipe.dataset))}', '']
    return '\n'.join(lines + [f'{key:20} {getattr(recipe, key)}' for key in settings(type(recipe))])


def training_cost(name: str) -> str:
    """Return the cost of a recipe's training in words, and of those that come before it."""
    recipe: BaseRecipe = {**RECIPES, **PRETRAININGS}[name]
    on = f'{recipe.total_epochs} epochs of {usual_images(recipe)[0]:,} images'
    first = ''.join(f'; plus {other}, {_digits(pflop_of(other))} PFLOP' for other in before(recipe))
    return f'{_digits(pflop_of(name))} PFLOP ({on}){first}'


def _digits(value: float) -> str:
    return f'{float(f"{value:.3g}"):,.10g}'


def cost(weight: Weight) -> Count:
    """Count parameters and multiply-adds per image, at the size and with the classes of the weights."""
    return counted(weight.architecture, weight.input_size[-1], 0 if weight.encoder else weight.data.num_classes)


def in_order() -> list[Weight]:
    """Return all weights, by architecture, the default of each first."""
    names = [name for model in list_models() for name in timm.models.get_arch_pretrained_cfgs(model)]
    return [catalogue()[name] for name in names if name in catalogue()]
