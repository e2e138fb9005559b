"""`tinyvit-zoo pretrain`."""
from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..errors import ZooError
from ..recipes import PRETRAINING_PRESETS, Pretraining, find_pretraining
from .train import add_options, add_settings, image_source, in_world, not_mirrored, options_of, overridden, refuse


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', metavar='METHOD', help=f'{", ".join(PRETRAINING_PRESETS)}, with --model; or a recipe '
                                                         f'of `tinyvit-zoo recipes`')
    parser.add_argument('--model', metavar='NAME', help='the encoder to make, for images of your own')
    add_options(parser)
    add_settings(parser, Pretraining)


def run_pretrain(args: argparse.Namespace, unknown: list[str]) -> str:
    """Says everything while it runs, the k-NN accuracy last. `unknown`: what the parser did not know."""
    refuse(unknown, Pretraining, 'pretrain')
    recipe = overridden(_recipe(args), args)
    if args.recipe in PRETRAINING_PRESETS:
        recipe = not_mirrored(recipe, args)
    from ..training.pretrain import pretrain

    options = options_of(args, recipe.name, image_source(args, recipe))
    in_world(args.device, lambda world: pretrain(recipe, options, world))
    return ''


def _recipe(args: argparse.Namespace) -> Pretraining:
    if args.recipe not in PRETRAINING_PRESETS:
        if args.model:
            find_pretraining(args.recipe)  # says where there is none
            raise ZooError(f'{args.recipe} says which model: leave --model out, or give a method, '
                           f'{", ".join(PRETRAINING_PRESETS)}.')
        return find_pretraining(args.recipe)
    if not args.model:
        raise ZooError(f'--model is missing: which encoder shall {args.recipe} pre-train?')
    return own_pretraining(args.recipe, args.model)


def own_pretraining(method: str, model: str) -> Pretraining:
    """Our recipe of a method, for a model at the size that it is made for."""
    from timm.models import get_pretrained_cfg

    from ..models import check_name

    check_name(model)
    model = model.partition('.')[0]
    cfg: Any = get_pretrained_cfg(model)
    return dataclasses.replace(PRETRAINING_PRESETS[method], name=f'{model}.{method}', img_size=cfg.input_size[-1],
                               crop_pct=cfg.crop_pct)
