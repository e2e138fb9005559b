"""The processes of a training."""
import pytest
import torch.distributed as dist

from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.runtime.world import join_world

GLOO = '[/pytorch/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:4012: Connection reset by peer'


@pytest.mark.parametrize(('error', 'expected'), [
    (RuntimeError(GLOO), ZooError), (dist.DistNetworkError('closed'), ZooError),
    (RuntimeError('of ours'), RuntimeError)])
def test_a_process_says_that_another_has_ended(
        monkeypatch: pytest.MonkeyPatch, error: Exception, expected: type[Exception]) -> None:
    monkeypatch.setenv('WORLD_SIZE', '2')
    for name in ('init_process_group', 'destroy_process_group'):
        monkeypatch.setattr(dist, name, lambda *args, **keywords: None)
    with pytest.raises(expected) as raised, join_world('cpu'):
        raise error
    assert raised.type is expected and ('--resume' in str(raised.value)) == (expected is ZooError)
