"""`tinyvit-zoo train`: the weights of a recipe, or fine-tuned ones."""
import argparse
import dataclasses

from ..errors import ZooError
from ..recipes import Recipe, find_recipe
from ..recipes.settings import override, parse_assignments
from ..training.own import finetuning_recipe, without_mirroring
from ..training.train import pretraining_of, train, train_from_pretraining
from ._jobs import train_all
from ._options import add_options, in_world, positive, with_options

NAME = 'train'
SUMMARY = 'train a recipe, or fine-tune weights on your own images'
EXAMPLES = '''
tinyvit-zoo train cct_2_3x2.digits
tinyvit-zoo train cct_7_3x1.c10 --data cifar10:PATH --output runs/a
tinyvit-zoo train cct_7_3x1.c10 --data cifar10:PATH --output runs/a --resume
tinyvit-zoo train --model cct_4_3x2.c100 --data folder:photos --minutes 10
tinyvit-zoo train cct_7_3x1.c10 sl_vit.c10 --data cifar10:PATH --output runs --jobs 2
torchrun --nproc-per-node 4 -m tinyvit_zoo train cct_7_3x1.c10 --data cifar10:PATH
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', metavar='RECIPE', nargs='*',
                        help='see `tinyvit-zoo recipes`; several train at once, each in OUTPUT/RECIPE')
    parser.add_argument('--jobs', type=positive, metavar='N', help='recipes to train at once (default: all)')
    parser.add_argument(
        '--model', metavar='NAME[.TAG]',
        help='fine-tune these weights instead (without TAG: the default weights); or a run, a file, hf-hub:ORG/NAME')
    parser.add_argument(
        '--from', dest='start', metavar='RUN_OR_WEIGHTS', default='',
        help='start from these weights, like --from-weights; a pre-training run also sets the model')
    parser.add_argument('--pretraining', nargs='+', metavar='SETTING=VALUE', default=[],
                        help='override settings of the pre-training of the recipe: epochs=100')
    add_options(parser, Recipe)


def run(args: argparse.Namespace) -> str:
    """Print while training, the accuracy last."""
    if len(args.recipe) > 1 and not args.model:
        return train_all(args)
    recipe, options = with_options(args, _recipe(args))
    first = pretraining_of(recipe)
    if first is None:
        if args.pretraining:
            raise ZooError(f'--pretraining is for recipes with a pre-training; {recipe.name} has none.')
        return in_world(args.device, lambda world: train(recipe, options, world))
    first = override(first, parse_assignments(args.pretraining))
    return in_world(args.device, lambda world: train_from_pretraining(first, recipe, options, world))


def _recipe(args: argparse.Namespace) -> Recipe:
    if args.recipe and args.model:
        raise ZooError('Give either RECIPE (`tinyvit-zoo recipes` lists them) or --model NAME.')
    if args.recipe:
        recipe = find_recipe(args.recipe[0])
        return dataclasses.replace(recipe, from_weights=args.start) if args.start else recipe
    resumed = args.output if args.resume else None
    return without_mirroring(finetuning_recipe(args.model or '', args.start, resumed), args.data or '')
