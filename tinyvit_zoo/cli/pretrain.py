"""`tinyvit-zoo pretrain`: an encoder without labels."""
import argparse

from ..errors import ZooError
from ..recipes import PRETRAINING_PRESETS, Pretraining, find_pretraining
from ..training.train import pretraining_recipe, train, without_mirroring
from ._options import add_options, in_world, with_options

NAME = 'pretrain'
SUMMARY = 'pre-train an encoder without labels, for `train --from` to start from'
EXAMPLES = '''
tinyvit-zoo pretrain mae_small --model ssl_vit --data folder:photos --output runs/a
tinyvit-zoo train --from runs/a --data folder:photos --output runs/b
tinyvit-zoo pretrain mae_vit_c10.c10_mae --data cifar10:PATH
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', metavar='METHOD', help=f'{", ".join(PRETRAINING_PRESETS)}, with --model; or a recipe '
                                                         f'of `tinyvit-zoo recipes`')
    parser.add_argument('--model', metavar='NAME', help='encoder to pre-train on images of your own')
    add_options(parser, Pretraining)


def run(args: argparse.Namespace) -> str:
    """Print while training, the k-NN accuracy last."""
    recipe, options = with_options(args, _recipe(args))
    return in_world(args.device, lambda world: train(recipe, options, world))


def _recipe(args: argparse.Namespace) -> Pretraining:
    if args.recipe not in PRETRAINING_PRESETS:
        recipe = find_pretraining(args.recipe)
        if args.model:
            raise ZooError(f'{args.recipe} has its model: leave --model out, or take {", ".join(PRETRAINING_PRESETS)}.')
        return recipe
    if not args.model:
        raise ZooError(f'--model is missing: give the encoder for {args.recipe} to pre-train.')
    return without_mirroring(pretraining_recipe(args.recipe, args.model), args.data or '')
