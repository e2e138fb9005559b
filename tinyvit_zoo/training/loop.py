"""The training loop, for every method.

Same seed, same machine, same number of processes: the same bits on a CPU, also where the run was killed at any moment
and resumed. Random numbers come from torch's global generators (dropout) and from `generator` (augmentation), whose
states are in the checkpoint; the order of the images is a function of seed and epoch. On a GPU some kernels add in an
order of their own, so there the figures agree to rounding only.
"""
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..data.batches import Batches
from ..errors import ZooError
from ..methods import Task
from ..runtime.documents import not_finite
from ..runtime.text import one_line
from ..runtime.world import autocast
from .graphs import CudaGraph, GraphedStep
from .optimizer import clip_gradients, learning_rate, make_optimizer, set_learning_rate, steps_by_tensors, weight_decay
from .run_dir import Run, checkpoints, load_checkpoint, read_log, save_checkpoint

_CHECK_EVERY = 20  # steps between two checks that need the host or the other processes


class Stopped(Exception):
    """A signal ended the run, after its checkpoint was written. Its argument is the signal's number."""


class Loop:
    """Train `task` on `batches` as its recipe says, and write what `run` keeps."""

    def __init__(self, task: Task, batches: Batches, run: Run, compile: bool = False, checkpoint_minutes: float = 1.,
                 graphs: bool = True) -> None:
        recipe, world = task.recipe, task.world
        if not len(batches):
            raise ZooError(f'The training data hold less than one batch of {recipe.batch_size} images: use a smaller '
                           f'batch_size.')
        self.task, self.batches, self.run = task, batches, run
        self.recipe, self.world, self.dtype = recipe, world, task.dtype
        self.total_steps = len(batches) * recipe.total_epochs
        self.seconds_between, self.saved_at = 60 * checkpoint_minutes, time.monotonic()
        self.optimizer = make_optimizer(recipe, task.network)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.dtype is torch.float16)
        seed = (recipe.seed * 1_000_003 + world.rank * 7_919) % 2 ** 62
        self.generator = torch.Generator(world.device).manual_seed(seed)
        torch.manual_seed(seed + 1)  # dropout and drop path
        self.parts = {'network': task.network, 'task': task, 'optimizer': self.optimizer, 'scaler': self.scaler}
        self.parameters = [p for p in task.network.parameters() if p.requires_grad]
        self.forward: Any = task.network
        if world.size > 1:
            self.forward = DistributedDataParallel(
                task.network, device_ids=[world.device] if world.device.type == 'cuda' else None)
        if compile:
            self.forward = torch.compile(self.forward)
        self.graphs: GraphedStep | None = None
        if graphs and world.device.type == 'cuda' and world.size == 1 and not self.scaler.is_enabled() and (
                steps_by_tensors(recipe)):
            self.graphs = self.graphed(CudaGraph)
        self.epoch = self.batch = self.step = 0
        self.losses: list[Tensor] = []      # of this epoch, on the device until they are checked
        self.checked = 0                    # how many of them are
        self.seconds = 0.                   # of training in this epoch, over all sessions

    def graphed(self, graph: type[CudaGraph]) -> GraphedStep:
        generators = [self.generator, *([self.task.generator] if self.task.generator else [])]
        return GraphedStep(self._gradients, self._update, self.optimizer, generators, self.run.say, graph)

    def train(self) -> None:
        """Train to the end. Raises Stopped after a signal."""
        with _signals() as caught, self.run.progressing(self.step, self.total_steps):
            while self.epoch < self.recipe.total_epochs:
                self._train_epoch(caught)
                self.end_epoch()
                self.epoch, self.batch, self.losses, self.checked, self.seconds = self.epoch + 1, 0, [], 0, 0.
                if self._due(caught, always=True) or self.epoch == self.recipe.total_epochs:
                    self.save()
                if caught:
                    raise Stopped(caught[0])

    def _train_epoch(self, caught: list[int]) -> None:
        self.task.network.train()
        self.batches.set_epoch(self.epoch, self.batch)
        start = time.monotonic()
        for images, labels in self.batches:
            self.train_step(images, labels)
            self.batch, self.step = self.batch + 1, self.step + 1
            if self.batch < len(self.batches) and self._due(caught):
                self._count_seconds(start)
                self.save()
                if caught:
                    raise Stopped(caught[0])
                start = time.monotonic()
        self._count_seconds(start)

    def _count_seconds(self, start: float) -> None:
        if self.world.device.type == 'cuda':    # it runs behind
            torch.cuda.synchronize(self.world.device)
        self.seconds += time.monotonic() - start

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        epoch = self.step / len(self.batches)
        set_learning_rate(self.optimizer, learning_rate(self.recipe, epoch), weight_decay(self.recipe, epoch))
        progress = self.step / self.total_steps
        try:
            loss = self.graphs.gradients(images, labels, self.task.kind_at(self.epoch, progress)) if self.graphs else (
                self._gradients(images, labels))
        except Exception as e:
            if type(e).__module__.startswith(('torch._inductor', 'torch._dynamo')):
                raise ZooError(f'The training cannot be compiled here ({one_line(e)}): install what is missing, or '
                               f'leave out compile.') from e
            if not isinstance(e, ValueError) or 'more than 1 value per channel' not in str(e):
                raise   # else of a batch norm
            raise ZooError(f'{self.recipe.model} has batch norms, which cannot be trained on one image at a time: use '
                           f'a larger batch_size, or less accumulate.') from e
        self.task.before_step(progress)
        (self.graphs.update if self.graphs else self._update)()
        self.task.after_step((self.step + 1) / self.total_steps)
        self.losses.append(loss)

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Augment a batch and compute its gradients; return the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        parts, total = self.recipe.accumulate, torch.zeros((), device=self.world.device)
        chunks = list(zip(images.chunk(parts), labels.chunk(parts), strict=True))  # may be fewer than were asked for
        for i, (part, part_labels) in enumerate(chunks, start=1):
            inputs = self.task.prepare(part, part_labels, self.epoch, self.generator)
            alone = self.world.size > 1 and i < len(chunks)
            with self.forward.no_sync() if alone else nullcontext():
                with autocast(self.world.device, self.dtype):
                    loss = self.task.loss(self.forward, *inputs) * (len(part) / len(images))
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _update(self) -> None:
        """Clip the gradients and step."""
        if self.recipe.clip:
            self.scaler.unscale_(self.optimizer)
            clip_gradients(self.parameters, self.recipe.clip, self.recipe.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _due(self, caught: list[int], always: bool = False) -> bool:
        """Return whether to write a checkpoint now. Regularly check the losses and show the progress."""
        many = self.world.size > 1
        if not always and self.step % _CHECK_EVERY and (many or self.world.device.type == 'cuda'):
            return False
        if not self.step % _CHECK_EVERY or always:
            self._check_losses()
            lr = learning_rate(self.recipe, self.step / len(self.batches))
            loss = f', loss {self.losses[-1].item():.3f}' if self.losses else ''
            self.run.show(self.step, f'epoch {self.epoch + 1}/{self.recipe.total_epochs}{loss}, lr {lr:.2e}')
        late = time.monotonic() - self.saved_at >= self.seconds_between
        return self.world.any(bool(caught) or (late and self.world.first))

    def _check_losses(self) -> None:
        """Raise ZooError at the first loss that is NaN or infinite."""
        values = torch.stack(self.losses[self.checked:]).tolist() if len(self.losses) > self.checked else []
        for i, value in enumerate(values, start=self.step - len(values)):
            if not math.isfinite(value):
                raise self._diverged(f'The loss became {value}', i)
        self.checked = len(self.losses)

    def _check_weights(self) -> None:
        """Raise ZooError if the last step made weights NaN or infinite: its loss was computed before."""
        if not all(torch.stack([p.detach().isfinite().all() for p in self.parameters]).tolist()):
            raise self._diverged('Weights became infinite or NaN', self.step - 1)

    def _diverged(self, what: str, step: int) -> ZooError:
        kept = checkpoints(self.run.folder)
        return ZooError(
            f'{what} at step {step + 1} (learning rate {learning_rate(self.recipe, step / len(self.batches)):.3g}): '
            f'try a lower lr, more warmup_epochs, a clip of 1 or the precision fp32, in another output. '
            f'{f"The last good checkpoint is {kept[-1]}." if kept else "There is no checkpoint yet."}')

    def end_epoch(self) -> None:
        """Evaluate and log."""
        self._check_losses()
        self._check_weights()
        mean = self.world.sum(torch.stack(self.losses).double().mean()).item() / self.world.size
        row = {
            'epoch': self.epoch + 1, 'step': self.step,
            'lr': learning_rate(self.recipe, (self.step - 1) / len(self.batches)), 'train_loss': mean,
            'images_per_second': self.batches.num_images / max(self.seconds, 1e-9), 'seconds': self.seconds,
            **self.task.evaluate(self.epoch + 1)}
        if name := next(not_finite(row), ''):
            raise self._diverged(f'{name.replace("_", " ")} became {row[name]}', self.step - 1)
        if self.world.first:
            self.run.log(row)

    def save(self) -> None:
        """Write a checkpoint with all that the rest of the run depends on."""
        self._check_losses()
        self._check_weights()
        state = {'cpu': torch.get_rng_state(), 'generator': self.generator.get_state()}
        if self.world.device.type == 'cuda':
            state['cuda'] = torch.cuda.get_rng_state(self.world.device)
        random = self.world.gather(state)
        optimizer = self.optimizer.state_dict()
        for group in optimizer['param_groups']:
            group['lr'] = float(group['lr'])        # a tensor for graphs
        if self.world.first:
            save_checkpoint(self.run.folder, self.step, {
                'run': self.run.identity, 'epoch': self.epoch, 'batch': self.batch, 'step': self.step,
                'seconds': self.seconds,
                'losses': torch.stack(self.losses).cpu() if self.losses else torch.zeros(0),
                'streamed': self.batches.streamed, 'random': random, 'rows': self.run.rows,
                **{name: part.state_dict() for name, part in self.parts.items()}, 'optimizer': optimizer})
            self.run.draw_images(self.step, self.task.drawn(), self.task.cfg)
        self.world.barrier()
        self.saved_at = time.monotonic()

    def restore(self) -> bool:
        """Load the newest sound checkpoint of the run; False where there is none."""
        state = load_checkpoint(self.run.folder, self.run.say)
        if len(set(self.world.gather(state and state['step']))) > 1:
            raise ZooError(f'The processes see different checkpoints in {self.run.folder}: choose an output on a '
                           f'disk that all machines share.')
        if state is None:
            if self.world.first:
                self.run.rewind([])
            return False
        if len(state['random']) != self.world.size:
            raise ZooError(f'The run has {len(state["random"])} processes, this is {self.world.size}: resume it with '
                           f'as many, or start over in another output.')
        if state.get('streamed', self.batches.streamed) != self.batches.streamed:
            raise ZooError(f'The run was made by the loader {"stream" if state["streamed"] else "memory"}, with other '
                           f'random augmentations: resume it with that, or start over in another output.')
        self.epoch, self.batch, self.step = state['epoch'], state['batch'], state['step']
        self.seconds = state['seconds']
        self.losses = list(state['losses'].to(self.world.device))
        self.checked = len(self.losses)
        for saved, group in zip(state['optimizer']['param_groups'], self.optimizer.param_groups, strict=False):
            if 'capturable' in group:       # as this device has it
                saved['capturable'] = group['capturable']
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError) as e:   # of an earlier version: others state their run
            raise ZooError(f'The checkpoint of step {self.step} in {self.run.folder} is of another run '
                           f'({one_line(e)[:100]}): remove it, or restore it from a copy of this run.') from e
        random = state['random'][self.world.rank]
        torch.set_rng_state(random['cpu'])
        self.generator.set_state(random['generator'])
        if 'cuda' in random:
            torch.cuda.set_rng_state(random['cuda'], self.world.device)
        if self.world.first:    # checkpoints of earlier versions have no rows
            self.run.rewind(state['rows'] if 'rows' in state else [
                row for row in read_log(self.run.folder) if row['step'] <= self.step])
        return True


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list that collects SIGINT and SIGTERM: the loop then ends after its step. Another ends it at once."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():   # signals reach the main thread alone
        yield caught
        return

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
