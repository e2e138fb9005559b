"""`tinyvit-zoo pretrain`: an encoder without labels."""
import argparse

from ..recipes import PRETRAINING_PRESETS, Pretraining
from ..training.own import pretraining_recipe, without_mirroring
from ..training.train import train
from ._options import add_options, in_world, with_options

NAME = 'pretrain'
SUMMARY = 'pre-train an encoder without labels, for `train --from`'
EXAMPLES = '''
tinyvit-zoo pretrain mae_small --model ssl_vit --data folder:photos --output runs/a
tinyvit-zoo train --from runs/a --data folder:photos --output runs/b
tinyvit-zoo pretrain mae_vit_c10.c10_mae --data cifar10:PATH
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', metavar='METHOD', help=f'{", ".join(PRETRAINING_PRESETS)}, with --model; or a '
                                                         f'recipe of `tinyvit-zoo recipes`')
    parser.add_argument('--model', metavar='NAME', help='encoder to pre-train on your own images')
    add_options(parser, Pretraining)


def run(args: argparse.Namespace) -> str:
    """Print while training, the k-NN accuracy last."""
    recipe = pretraining_recipe(args.recipe, args.model or '')
    recipe, options = with_options(args, without_mirroring(recipe, args.data or '') if args.model else recipe)
    return in_world(args.device, lambda world: train(recipe, options, world))
