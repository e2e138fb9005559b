"""What there is to say of a weight, in Markdown: for MODEL_CARDS.md and for the Hub."""
from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

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
    """A table of all that is known, without a title."""
    rows = ''.join(f'| {title} | {text} |\n' for title, text in _rows(weight).items() if text)
    return f'| | |\n|---|---|\n{rows}'


def _rows(weight: Weight) -> dict[str, str]:
    import timm

    cfg, counted = timm.get_pretrained_cfg(weight.name), cost(weight)
    size = ' x '.join(map(str, weight.input_size))
    return {
        'use': _use(weight),
        'architecture': f'{_family(weight)} Paper: {cfg.paper_name} ({cfg.paper_ids})',
        'file': _file(weight),
        'training data': weight.data.about,
        'recipe': _recipe(weight),
        'preprocessing': f'{size} pixels from 0 to 1, `crop_pct` {cfg.crop_pct:g}, {cfg.interpolation} where they are '
                         f'resized; mean {_numbers(cfg.mean)}, std {_numbers(cfg.std)}',
        'measured': _measured(weight),
        'published': _published(weight),
        'the two': _beside(weight),
        'parameters, MACs': f'{counted.params:,}; {counted.macs / 1e6:,.2f} M multiply-adds an image, attention '
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
        return (f'Features of images like those of {data.title}; to begin a training on labelled ones with. It has no '
                f'classifier.')
    names = f' ({", ".join(data.label_names)})' if 0 < len(data.label_names) <= 10 else ''
    return (f'Telling the {data.num_classes} classes of {data.title} apart{names}; to begin a training on images of '
            f"one's own with; to compare methods by.")


def _family(weight: Weight) -> str:
    """The first line of the file that the model is in, and which default it is."""
    import sys

    import timm

    doc = sys.modules[timm.models.model_entrypoint(weight.architecture).__module__].__doc__ or ''
    default = timm.get_pretrained_cfg(weight.architecture).tag == weight.tag
    return (f'`{weight.architecture}`{", whose default these weights are" if default else ""}. '
            f'{doc.splitlines()[0].rstrip(".")}.')


def _file(weight: Weight) -> str:
    if weight.file:
        return f'`{weight.file}`, ships with the package, half precision; sha256 `{weight.sha256}`'
    digest = f'; sha256 `{weight.sha256}`' if weight.sha256 else '; its digest is not known'
    place = f'<{weight.url}>' if weight.url else f'`{weight.hf_hub_id}` on the Hugging Face Hub'
    return f'{place}, fetched when it is asked for{digest}'


def _recipe(weight: Weight) -> str:
    made = weight.trained
    if not made:
        return f"{weight.recipe}: the authors' training ({weight.origin})"
    return (f'`{weight.recipe}` (`tinyvit-zoo recipes {weight.recipe}` shows it): `{made["command"]}`; '
            f'{made["minutes"]:g} minutes on {made["machine"]}, {made["date"]}. Every epoch: `weights/{made["log"]}`')


def _measured(weight: Weight) -> str:
    found = weight.measured
    if not found:
        return 'nothing, by us'
    top5 = f', {found["top5"]:.2f} % top-5' if 'top5' in found else ''
    return (f'{found["top1"]:.2f} % top-1{top5}, loss {found["loss"]:.4f}, {found["on"]} ({found["images"]:,}), the '
            f'file as it is loaded, fp32; {found["date"]}, {found["machine"]}: `{found["command"]}`')


def _beside(weight: Weight) -> str:
    """How far what we measured is from the best published figure of the architecture on the same data set."""
    same = (weight.architecture, weight.dataset, weight.input_size)
    figures = [(w.published['top1'], w.name) for w in catalogue().values()
               if w.published and (w.architecture, w.dataset, w.input_size) == same]
    if not figures or not weight.measured:
        return ''
    best, name = max(figures)
    points = weight.measured['top1'] - best
    of = 'its recipe' if name == weight.name else f'`{name}`'
    return f'{abs(points):.2f} points {"above" if points >= 0 else "below"} the {best:.2f} % published of {of}'


def _published(weight: Weight) -> str:
    if not weight.published:
        return 'no figure'
    of = 'of the recipe, in the hands of its authors: ' if weight.ours else ''
    return f'{of}{weight.published["top1"]:.2f} % top-1 ({weight.published["source"]})'


def _throughput(weight: Weight) -> str:
    speed = weight.measured and weight.measured.get('throughput')
    if not speed:
        return 'not measured'
    return (f'{speed["images_per_second"]:,.0f} images/s, inference, fp32, batch {speed["batch_size"]}; '
            f'{speed["machine"]}, {speed["date"]}')


def _limits(weight: Weight) -> str:
    size = weight.input_size[-1]
    classes = '' if weight.encoder else ' Whatever the image, the answer is one of its classes.'
    return (f'Made for {size} px: larger images lose what is finer, smaller ones were not in the training.{classes} '
            f'Not for decisions about people. Nothing is claimed of noisy, shifted or attacked images.')


def _licence(weight: Weight, licence: str) -> str:
    if weight.ours:
        return f'{licence} for the weights; the images remain their makers\''
    return "the authors state none: ask them" if licence == 'unknown' else f"{licence}, of the authors' repository"


def _numbers(values: tuple[float, ...]) -> str:
    return ', '.join(f'{value:g}' for value in values)


def cost(weight: Weight) -> Count:
    """Parameters and multiply-adds of an image, at the size and with the classes of the weight."""
    return _counted(weight.architecture, weight.input_size, 0 if weight.encoder else weight.data.num_classes)


@cache
def _counted(architecture: str, input_size: tuple[int, int, int], num_classes: int) -> Count:
    import timm

    from ..measure.counting import count

    model: Any = timm.create_model(
        architecture, device='meta', img_size=input_size[1:], in_chans=input_size[0], num_classes=num_classes)
    return count(model)


def figure(weight: Weight) -> tuple[float, bool] | None:
    """Top-1 and whether we measured it ourselves; None where there is no figure."""
    found = weight.measured or weight.published
    return (found['top1'], weight.measured is not None) if found else None


def in_order() -> list[Weight]:
    """All weights, by architecture, each one's default first."""
    import timm

    from ..models import list_models

    names = [name for model in list_models() for name in timm.models.get_arch_pretrained_cfgs(model)]
    return [catalogue()[name] for name in names if name in catalogue()]
