"""`tinyvit-zoo recipes`: all recipes, or one in full."""
import argparse

from ..publish.cards import recipe_text
from ..recipes import PRETRAININGS, RECIPES

NAME = 'recipes'
SUMMARY = 'list recipes, or show one in full'
EXAMPLES = 'tinyvit-zoo recipes cct_7_3x1.c10'


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', metavar='RECIPE', nargs='?')


def run(args: argparse.Namespace) -> str:
    if args.name:
        return recipe_text(args.name)
    return '\n'.join([
        f'{"recipe":34} {"paper":>7}  epochs',
        *(f'{r.name:34} {r.published or "-":>7}  {r.epochs:>6}' for r in RECIPES.values()), '',
        f'{"pre-training":34} {"method":>12} epochs',
        *(f'{r.name:34} {r.method:>12} {r.epochs:>6}' for r in PRETRAININGS.values())])
