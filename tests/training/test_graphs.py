"""Steps captured as graphs, by one that plays recorded operators on a CPU: constants and memory stay as recorded."""
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_cases import read_checkpoint, run, weights

from tinyvit_zoo.cli.main import main
from tinyvit_zoo.methods import Supervised, self_supervised
from tinyvit_zoo.training import muon
from tinyvit_zoo.training.graphs import CudaGraph
from tinyvit_zoo.training.loop import Loop
from tinyvit_zoo.training.run_dir import read_log

_WAITS = {'_local_scalar_dense', 'nonzero', 'masked_select', 'bincount', 'unique_dim', '_unique2', 'repeat_interleave',
          'lift_fresh'}     # the last one: a tensor is made from Python numbers, and has to be copied to the device


class Record(TorchDispatchMode):
    """Note every operator; keep what was in the memory that they change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()
        self.before: dict[int, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in _WAITS or (name == 'index' and any(
                i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])):
            raise RuntimeError(f'{name} waits for the device')
        given = [*args, *(kwargs.get(a.name) for a in func._schema.arguments[len(args):])]
        for value, argument in zip(given, func._schema.arguments, strict=True):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(value):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in self.made:
                        self.before.setdefault(storage._cdata, (storage, storage.clone()))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **kwargs)
        self.made |= {t.untyped_storage()._cdata for t in tree_leaves(result) if isinstance(t, torch.Tensor)} - known
        self.calls.append((func, args, kwargs, result))
        return result


class Recorded(CudaGraph):
    """As a CUDA graph, it is not run while it is captured."""
    made: ClassVar[list['Recorded']] = []

    def __init__(self, act: Callable[[], Any], generators: list[torch.Generator], before: Any = None) -> None:
        generators = [torch.default_generator, *generators]
        states = [generator.get_state() for generator in generators]
        record = Record()
        with record:
            self.result = act()
        for storage, content in record.before.values():
            storage.copy_(content)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        self.calls, self.played = record.calls, 0
        self.made.append(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.played += 1
        for func, args, kwargs, result in self.calls:
            for kept, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)

    @staticmethod
    def warm_up(act: Callable[[], Any]) -> Any:
        return act()


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train by plain steps and by graphs, with the operators of a GPU: the losses are the same."""
    init = Loop.__init__
    monkeypatch.setattr(Recorded, 'made', [])
    monkeypatch.setattr('timm.optim._helpers._get_capturable_supported_devices', lambda **kwargs: ['cpu'])

    def train(act: Callable[[Path], int]) -> Path:
        for name in ('plain', 'graphs'):
            def dense(self: Loop, *args: Any, **kwargs: Any) -> None:
                init(self, *args, **kwargs)
                for _, augment in itertools.chain(*self.task.views.sizes):
                    augment.dense = True
                if name == 'graphs':        # noqa: B023
                    self.graphs = self.graphed(Recorded)
                    for group in self.optimizer.param_groups:
                        group['capturable'] = 'ns_steps' in group

            monkeypatch.setattr(Loop, '__init__', dense)
            assert act(tmp_path / name) == 0
        one, two = ([row['train_loss'] for row in read_log(tmp_path / name)] for name in ('plain', 'graphs'))
        assert one == pytest.approx(two, rel=1e-4)
        return tmp_path
    return train


def test_training(data: str, both: Callable[..., Path]) -> None:
    """With everything that changes from step to step: rate, mixing until an epoch, two parts, averaged weights."""
    folder = both(lambda folder: run(
        data, folder, '--opt', 'sgd', '--keep', 'ema', '--model-args', "{'drop_path_rate': 0.1}", '--accumulate', '2',
        '--erase', '0.3', '--color-jitter', '(0.4, 0.4, 0.4, 0.1)', '--cutmix', '1', '--epochs', '4', '--clip', '1'))
    assert [graph.played for graph in Recorded.made] == [9] * 4     # 12 steps mixed, 12 not; 3 of each are not played
    one, two = weights(folder / 'plain'), weights(folder / 'graphs')
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-5)
    state = read_checkpoint(max((folder / 'graphs').glob('checkpoint*')))
    assert isinstance(state['optimizer']['param_groups'][0]['lr'], float)


@pytest.mark.parametrize('more', [('adamw',), ('nmuon', '--sizes', '(8, 16)', '--auto-augment', 'cifar10')])
def test_optimizers(data: str, both: Callable[..., Path], more: tuple[str, ...]) -> None:
    both(lambda folder: run(data, folder, '--mixup', '0', '--epochs', '2', '--mix-off-epoch', '0', '--opt', *more))
    assert Recorded.made


def test_a_teacher_and_whitened_filters(data: str, tmp_path: Path, both: Callable[..., Path]) -> None:
    settings = ('--mix-off-epoch', '0', '--warmup-epochs', '0')
    assert run(data, tmp_path / 'teacher', *settings, '--epochs', '1') == 0
    both(lambda folder: run(data, folder, *settings, '--epochs', '2', '--opt', 'sgd', '--whiten', 'true', '--teacher',
                            str(tmp_path / 'teacher')))
    assert [graph.played for graph in Recorded.made] == [9, 9]


@pytest.mark.parametrize(('loss', 'balance'), [('asymmetric', 'none'), ('bce', 'loss')])
def test_several_labels(tmp_path: Path, both: Callable[..., Path], loss: str, balance: str) -> None:
    random = np.random.RandomState(0)
    images, labels = random.randint(0, 256, (96, 16, 16, 3), np.uint8), random.randint(0, 2, (96, 4))
    np.savez(tmp_path / 'a.npz', train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    both(lambda folder: run(
        f'npz:{tmp_path / "a.npz"}', folder, '--epochs', '2', '--mix-off-epoch', '0', '--mixup', '0', '--opt', 'sgd',
        '--multi-label-loss', loss, '--balance', balance))
    assert [graph.played for graph in Recorded.made] == [9, 9]


@pytest.mark.parametrize(('method', 'played', 'more'), [
    ('mae_small', [9, 9], ('--opt', 'sgd')),
    ('d_mae', [9, 9], ('--opt', 'sgd', '--teacher', 'vit_lite_2_4')),
    ('moco_v3', [9, 9], ('--opt', 'sgd', '--method-args', "{'hidden_dim': 32, 'dim': 16}")),
    ('self_distill', [3, 3, 9, 9], ('--epochs', '3', '--method-args', "{'freeze_last': 0.3, 'num_prototypes': 32, "
                                    "'hidden_dim': 32, 'bottleneck_dim': 16, 'local_views': 2}"))])
def test_pretraining(
        data: str, both: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, method: str, played: list[int],
        more: tuple[str, ...]) -> None:
    teacher = timm.create_model('vit_lite_2_4', img_size=16, num_classes=0)
    monkeypatch.setattr(self_supervised, 'make_teacher', lambda recipe: teacher)
    both(lambda folder: main([
        'pretrain', method, '--model', 'vit_lite_2_4', '--data', data, '--output', str(folder), '--img-size', '16',
        '--epochs', '2', '--batch-size', '16', '--precision', 'fp32', '--device', 'cpu', *more]))
    assert [graph.played for graph in Recorded.made] == played


def test_what_cannot_be_captured_runs_plainly(
        data: str, both: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        ) -> None:
    prepare = Supervised.prepare

    def wait(self: Supervised, images: torch.Tensor, *args: Any) -> tuple[torch.Tensor, ...]:
        images.max().item()
        return prepare(self, images, *args)
    monkeypatch.setattr(Supervised, 'prepare', wait)
    both(lambda folder: run(data, folder, '--epochs', '1', '--warmup-epochs', '0', '--mix-off-epoch', '0'))
    assert capsys.readouterr().out.count('without CUDA graphs, and slower: _local_scalar_dense waits') == 1


@pytest.mark.parametrize('name, units', [('muon', torch.bfloat16), ('nmuon', torch.bfloat16), ('nmuon', None)])
def test_matrices_of_a_shape_step_together(
        monkeypatch: pytest.MonkeyPatch, name: str, units: torch.dtype | None) -> None:
    """With units for bfloat16, weights and state are timm's to the bit; without, float32 is used, which is faster."""
    types, orthogonalize = set(), muon.zeropower_via_newtonschulz
    monkeypatch.setattr(muon, 'autocast_dtype', lambda *_: units)
    monkeypatch.setattr(muon, 'zeropower_via_newtonschulz', lambda *args, **options: (
        types.add(options['dtype']), orthogonalize(*args, **options))[1])
    models = [timm.create_model('cct_2_3x2', num_classes=3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plain, batched = (create_optimizer_v2(model, name, lr=0.1, weight_decay=0.03, momentum=0.9) for model in models)
    muon.batch_matrices(batched)
    for seed in range(3):
        products = []
        for model, optimizer in zip(models, (plain, batched), strict=True):
            generator = torch.Generator().manual_seed(seed)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                optimizer.step()
            products.append(sum(event.name in ('aten::addmm', 'aten::baddbmm') for event in profile.events()))
        assert products[1] <= products[0] / 2
    assert types == {units or torch.float32}
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0 if units else 5e-3)
        assert (one.grad is None) == (two.grad is None)
    assert str(plain.state_dict()['param_groups']) == str(batched.state_dict()['param_groups'])
    assert [list(state) for state in plain.state.values()] == [list(state) for state in batched.state.values()]
