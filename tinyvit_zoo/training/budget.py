"""Choose the epochs of a training by the minutes or the PFLOP that it may take."""
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..errors import ZooError
from ..kernels.memory import keep_freed_memory
from ..recipes.ranges import FROM_1
from ..recipes.settings import AnyRecipe, override
from ..runtime.files import PARTIAL, remove_partial
from ..runtime.world import World, autocast_dtype, fast_kernels
from .loop import Loop
from .run_dir import Run

_AIM = 1.03             # of the minutes: a training may take 1 to 1.05 of them
_MEASURED = 0.03        # of the minutes: for steps to time, _STEPS and _SECONDS at least; the first third warms up
_STEPS, _SECONDS, _MOST_SECONDS = 15, 4., 120.
_REPEATED = 0.01        # of the minutes: what takes less is timed at its second call
_GPU_BLOCK = 20         # steps that are timed together where the device runs behind the host
_OUTLIER = 5.           # as many median steps are the most that one counts for


@dataclass
class Pace:
    """Seconds that the parts of a training take; `once`: building, beginning and finishing it."""
    step: float = 0.
    once: float = 0.
    evaluation: float = 0.
    checkpoint: float = 0.

    def seconds(self, epochs: int, steps: int, eval_every: int, checkpoint_minutes: float) -> float:
        """Estimate a training of so many epochs, of `steps` each."""
        evaluations = -(-epochs // eval_every)
        training = epochs * steps * self.step + evaluations * self.evaluation
        return self.once + training + self.checkpoint * (1 + training / max(60 * checkpoint_minutes, self.step))


def fit_epochs(recipe: AnyRecipe, given: Mapping[str, Any], cost: Callable[[AnyRecipe], float], limit: float,
               ) -> AnyRecipe | None:
    """Return the recipe with the most epochs within `limit`, the fields not `given` scaled; None if one costs more."""
    def of(epochs: int) -> AnyRecipe:
        return override(recipe, {**given, 'epochs': epochs})
    low, high = 0, 1
    while cost(of(high)) <= limit:
        low, high = high, 2 * high
        if not FROM_1.fits(low):
            raise ZooError(f'The minutes or pflop allow over {low:,} epochs, expected {FROM_1.expected}: give less.')
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(of(middle)) <= limit else (low, middle)
    return of(low) if low else None


def fit_pflop(recipe: AnyRecipe, options: Any, cost: Callable[[AnyRecipe], float]) -> AnyRecipe:
    """Return the recipe with the epochs that cost no more than `options.pflop`."""
    fitting = fit_epochs(recipe, options.given, cost, options.pflop * (1 + 1e-9))
    if fitting is None:
        least = cost(override(recipe, {**options.given, 'epochs': 1}))
        raise ZooError(f'pflop {options.pflop:g} is too little: one epoch takes {least:.3g}. Give more, or a smaller '
                       f'fraction.')
    return fitting


def fit_minutes(recipe: AnyRecipe, options: Any, world: World, build: Callable[[Run], Loop],
                finish: Callable[[Loop], Any], begun: float) -> AnyRecipe:
    """Return the recipe with the epochs that fit in `options.minutes` since `begun`, evaluation and set-up included.

    It is measured in a folder in `options.output`, which is locked: what a kill leaves there, the next start removes.
    """
    pace, limit = Pace(), 60 * _AIM * options.minutes

    def seconds(changed: Any) -> float:
        epochs = changed.total_epochs
        return spent + pace.seconds(epochs, steps, loop.task.eval_every(epochs), options.checkpoint_minutes)

    def timed(act: Callable[[], Any]) -> float:
        """Time the second call, since the first one imports and allocates; if that takes long, the first."""
        for _ in range(2):
            before = time.monotonic()
            act()
            taken = time.monotonic() - before
            if world.any(taken > 60 * _REPEATED * options.minutes):
                break
        return taken
    shortest = override(recipe, {**options.given, 'epochs': 1})
    dtype = autocast_dtype(options.precision, world.device)
    with ExitStack() as stack, keep_freed_memory(world.device), fast_kernels(world.device, dtype):
        if world.first:
            stack.callback(remove_partial, options.output)
        before = time.monotonic()
        run = Run(options.output / f'{PARTIAL}speed', quiet=True)
        stack.callback(run.close)
        loop = build(run)
        loop.task.begin()
        pace.once, steps = time.monotonic() - before, len(loop.batches)
        measured = min(max(_SECONDS, 60 * _MEASURED * options.minutes), _MOST_SECONDS)
        pace.step, spent = world.gather((_seconds_a_step(loop, measured), time.monotonic() - begun))[0]
        if seconds(shortest) <= limit:      # else the rest need not be known
            loop.epoch = recipe.total_epochs - 1    # the last: it is evaluated
            pace.evaluation, pace.checkpoint = timed(loop.end_epoch), timed(loop.save)
            pace.once += timed(lambda: finish(loop))
    pace, spent = world.gather((pace, time.monotonic() - begun))[0]
    fitting = fit_epochs(recipe, options.given, seconds, limit)
    if fitting is None:
        least = seconds(shortest) / 60
        raise ZooError(f'minutes {options.minutes:g} is too short: one epoch takes {least:.2g} minutes here, with '
                       f'start, evaluation and saving. Give minutes {1.2 * least:.2g}, or a smaller fraction.')
    return fitting


def _seconds_a_step(loop: Loop, least: float) -> float:
    """Time steps, loading included, for `least` seconds, at moments from all of the training."""
    block = _GPU_BLOCK if loop.world.device.type == 'cuda' else 1
    times: list[float] = []
    loop.task.network.train()
    while True:
        loop.batches.set_epoch(0)
        last = time.monotonic()
        for images, labels in loop.batches:
            loop.epoch = int(loop.recipe.total_epochs * (0.618 * loop.step % 1))    # evenly spread, by the golden ratio
            loop.train_step(images, labels)
            loop.step += 1
            if loop.step % block:
                continue
            loop.losses[-1].item()      # waits for the device
            times.append((time.monotonic() - last) / block)
            last = time.monotonic()
            enough = loop.step >= _STEPS and sum(times) * block >= least
            if loop.world.any(enough and loop.world.first):
                timed = times[len(times) // 3:]
                most = _OUTLIER * statistics.median(timed)
                return statistics.fmean(min(seconds, most) for seconds in timed)
