"""The interfaces of a training (`Task`, used by the loop) and of a way to pre-train (`Method`, used by its task)."""
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..augment.spec import AugmentSpec
from ..augment.views import OneView, Views
from ..data.sources import Source
from ..errors import ZooError
from ..recipes import BaseRecipe, Recipe
from ..recipes.ranges import FROM_1, SHARE
from ..runtime.text import one_line
from ..runtime.world import World
from ..weights.resolve import create_model, without_rates


class Method(nn.Module):
    """An encoder and the loss of pre-training it: `forward(*views, *drawn)`.

    To add one from outside: `METHODS[name] = CLASS`. Its constructor takes the encoder and the recipe's `method_args`,
    with defaults. Tensors but the encoder's are dropped at the end.
    """
    encoder: Any
    whole_batches = False       # compares the images of a batch, which cannot be split
    own_views = False           # does not use the recipe's padding, aspect ratio and colours
    distilled: Any = None       # a trained model whose outputs the loss compares with
    pictures = 0                # how many images `drawn` shows at a checkpoint

    @classmethod
    def check_encoder(cls, encoder: Any) -> None:
        """Raise ZooError for a kind of encoder that the method cannot use, whatever its arguments and weights."""

    def views(self, spec: AugmentSpec) -> Views:
        """Make the augmentation, of which `forward` gets the results."""
        return OneView(spec)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw the random inputs of the loss for `count` images, a row each: masks, for one."""
        return ()

    def kind_at(self, progress: float) -> Hashable:
        """Identify steps that differ only in the values of tensors; `progress`: from 0 to 1 over the training."""
        return None

    def before_step(self, progress: float) -> None:
        """Act between the backward pass and the optimizer."""

    def after_step(self, progress: float) -> None:
        """Update teachers and centres."""

    def trouble(self) -> str:
        """Return why nothing is learned any more, looked at after each step; '' if all is well."""
        return ''

    def kept(self) -> Any:
        """Return the encoder to keep."""
        return self.encoder

    def drawn(self, images: Tensor) -> dict[str, Tensor]:
        """Return rows of normalized images to show at a checkpoint, by their titles."""
        return {}


class Task:
    """A training as the loop sees it: `network` is what the optimizer sees, and `views` makes its inputs.

    `cfg`: preprocessing and classes of the weights to be, in timm's fields. `progress`: from 0 to 1 over the training.
    """
    network: Any
    views: Views
    title = 'Training'          # of the card's section
    distilled: Any = None       # a trained model whose outputs the loss compares with
    generator: torch.Generator | None = None    # what `prepare` draws by beside the one it is given
    given_eval_every = 0        # of the options
    least_eval_every = 1        # epochs from one evaluation to the next, at least

    def __init__(self, recipe: Any, cfg: Mapping[str, Any], world: World, dtype: torch.dtype | None, network: Any,
                 ) -> None:
        self.recipe, self.cfg, self.world, self.dtype, self.network = recipe, cfg, world, dtype, network

    @classmethod
    def check(cls, recipe: Any) -> None:
        """Raise ZooError for a recipe that cannot be trained, before anything is read or written."""

    @classmethod
    def check_images(cls, recipe: Any, source: Source) -> None:
        """Raise ZooError for images that the recipe cannot be trained on."""

    @classmethod
    def make_network(cls, recipe: Any, cfg: Mapping[str, Any], device: torch.device) -> Any:
        """Make the network with the weights to start from, or random ones drawn from the recipe's seed."""

    def watch(self, source: Source, say: Callable[[str], None], loading: Mapping[str, Any]) -> None:
        """Prepare the images that `evaluate` and `judge` use; `loading` are options of `make_batches`."""

    def begin(self) -> None:
        """Evaluate before the first step."""

    def prepare(self, images: Tensor, labels: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Augment a batch to the inputs of `loss`."""
        return ()

    def kind_at(self, epoch: int, progress: float) -> Hashable:
        """Identify steps that differ only in the values of tensors."""
        return None

    def loss(self, forward: Any, *inputs: Tensor) -> Tensor:
        """Compute the loss; `forward` is the network, perhaps wrapped."""
        return forward(*inputs)

    def before_step(self, progress: float) -> None:
        """Act between the backward pass and the optimizer."""

    def after_step(self, progress: float) -> None:
        """Update averages and teachers."""

    def eval_every(self, epochs: int) -> int:
        """Return the epochs from one evaluation to the next, in a training of so many."""
        return self.given_eval_every or max(self.least_eval_every, epochs // 20)

    def due(self, epoch: int) -> bool:
        return not epoch % self.eval_every(self.recipe.total_epochs) or epoch == self.recipe.total_epochs

    def evaluate(self, epoch: int) -> dict[str, float]:
        """Return figures for the log after an epoch; none where none are due."""
        return {}

    def drawn(self) -> dict[str, Tensor]:
        """Return rows of normalized images to show at a checkpoint, by their titles."""
        return {}

    # Every task has these too: the tensors that the training is for, the figures of those in a folder, lines to print
    # at the beginning and at the end, the parts of the card ('note', 'table', 'use', 'classes'), and its state.
    kept: Callable[[], dict[str, Tensor]]
    judge: Callable[[Path], dict[str, Any]]
    headline: Callable[[Source], str]
    summary: Callable[[Path, Mapping[str, Any]], list[str]]
    card: Callable[[Mapping[str, Any]], dict[str, str]]
    state_dict: Callable[[], dict[str, Any]]
    load_state_dict: Callable[[dict[str, Any]], None]


def check_model(recipe: BaseRecipe) -> Any:
    """Return the model on the meta device; ZooError where it cannot be made with the recipe's arguments."""
    SHARE.check(**{name: value for name, value in recipe.model_args.items() if name.endswith('_rate')})
    depths = recipe.model_args.get('depths', recipe.model_args.get('depth'))
    for depth in depths if isinstance(depths, (tuple, list)) else (depths,):
        FROM_1.check(depth=depth)
    try:
        model = create_model(recipe.model, device='meta', **{'img_size': recipe.img_size, **recipe.model_args})
    except ZooError:
        raise
    except Exception as e:  # constructors raise errors of all kinds for arguments that are not theirs
        raise ZooError(f'{recipe.model} cannot be built with the model_args {dict(recipe.model_args)} '
                       f'({one_line(e)}): expected arguments of its constructor that its name leaves open.') from e
    if isinstance(recipe, Recipe) and without_rates(recipe.model_args):
        _check_forward(recipe)
    return model


def _check_forward(recipe: Recipe) -> None:
    """Raise ZooError unless the model, with the recipe's arguments, classifies images."""
    problem = ''
    for device in ('meta', 'cpu'):      # a forward pass may need values
        try:
            model = create_model(recipe.model, device=device, **{'img_size': recipe.img_size, **recipe.model_args})
            logits = model.eval()(torch.zeros(2, 3, recipe.img_size, recipe.img_size, device=device))
            if logits.ndim == 2:
                return
            problem = f'its output is {list(logits.shape)}, not [images, classes]'
        except Exception as e:  # of every architecture its own
            problem = one_line(e)
    raise ZooError(f'{recipe.model} cannot be trained with the model_args {dict(recipe.model_args)} at '
                   f'{recipe.img_size} pixels ({problem}): leave some out.')
