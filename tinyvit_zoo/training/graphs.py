"""Training steps as CUDA graphs: hundreds of small kernels are launched at once."""
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 3                # steps of a kind that run as they are: they allocate the optimizer's state, compile, cache


class CudaGraph:
    """The kernels that a function launches, which `replay` launches again on the same memory."""

    def __init__(self, act: Callable[[], Any], generators: list[torch.Generator], before: 'CudaGraph | None' = None,
                 ) -> None:
        """Capture `act`, without running it. Its temporary memory may be that of a graph which is replayed before."""
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph, pool=before.graph.pool() if before else None):
            self.result = act()

    def replay(self) -> None:
        self.graph.replay()

    @staticmethod
    def warm_up(act: Callable[[], Any]) -> Any:
        """Run a function on another stream, as captures do."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = act()
        torch.cuda.current_stream().wait_stream(stream)
        return result


class _Kind:
    """Steps that differ only in the values of tensors."""

    def __init__(self) -> None:
        self.steps = 0
        self.inputs: tuple[Tensor, ...] = ()
        self.gradients: CudaGraph | None = None
        self.update: CudaGraph | None = None
        self.grads: list[Tensor | None] = []


class GraphedStep:
    """The two parts of a step, `gradients` and `update`, captured once they have run a few times.

    From step to step, what they read may change in its values alone: the images are copied, learning rates are tensors.
    Steps of another shape or another `Task.kind_at` get graphs of their own.
    """

    def __init__(self, gradients: Callable[[Tensor, Tensor], Tensor], update: Callable[[], None],
                 optimizer: torch.optim.Optimizer, generators: list[torch.Generator], say: Callable[[str], None],
                 graph: type[CudaGraph] = CudaGraph) -> None:
        self._gradients, self._update, self.optimizer, self.say, self.graph = gradients, update, optimizer, say, graph
        self.generators, self.failed = generators, False
        self.kinds: dict[Hashable, _Kind] = {}
        self.kind = _Kind()
        self.parameters = [p for group in optimizer.param_groups for p in group['params']]

    def gradients(self, images: Tensor, labels: Tensor, kind: Hashable) -> Tensor:
        """Compute gradients; return the loss."""
        if not self.kinds:
            for group in self.optimizer.param_groups:
                group['lr'] = torch.as_tensor(group['lr'], device=images.device)
        now = self.kind = self.kinds.setdefault((images.shape, images.dtype, kind), _Kind())
        now.steps += 1
        if now.steps > _WARM_UP and not self.failed and not now.gradients:
            now.inputs = images.clone(), labels.clone()
            now.gradients = self._capture(lambda: self._gradients(*now.inputs))
            now.grads = [p.grad for p in self.parameters]
        if not now.gradients:
            return self.graph.warm_up(lambda: self._gradients(images, labels))
        for kept, new in zip(now.inputs, (images, labels), strict=True):
            kept.copy_(new)
        for p, grad in zip(self.parameters, now.grads, strict=True):
            p.grad = grad
        now.gradients.replay()
        return now.gradients.result.clone()

    def update(self) -> None:
        """Step the optimizer."""
        now = self.kind
        if now.gradients and not now.update:
            now.update = self._capture(self._update, now.gradients)
            if self.failed:
                now.gradients = None
        if now.update:
            now.update.replay()
        else:
            self.graph.warm_up(self._update)

    def _capture(self, act: Callable[[], Any], before: CudaGraph | None = None) -> CudaGraph | None:
        try:
            return self.graph(act, self.generators, before)
        except RuntimeError as e:
            self.failed = True
            self.say(f'Steps run without CUDA graphs, and slower: {str(e).splitlines()[0]}')
            return None
