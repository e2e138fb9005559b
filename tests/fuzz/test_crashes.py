"""A training or pre-training killed at any operation on its files, or on a disk that is full at any write, resumes to
the same bits; what other commands write is there whole or not at all, and the next try succeeds. By default some of
the moments, with TINYVIT_FUZZ more or all of them."""
import random
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
import writers
from forked import KILLED, KINDS, Server
from fuzz_cases import FACTOR
from training_cases import assert_same_bits, write_npz

MACHINE = ['--device', 'cpu', '--precision', 'fp32', '--img-size', '16', '--epochs', '2', '--warmup-epochs', '0',
           '--batch-size', '32', '--checkpoint-minutes', '0', '--eval-every', '2']
COMMANDS = {
    'train': ['train', '--model', 'cct_2_3x2', '--from-weights', '', '--layer-decay', '1', '--ema', '0.9', *MACHINE],
    'pretrain': ['pretrain', 'moco_v3', '--model', 'cct_2_3x2', '--method-args', "{'hidden_dim': 32, 'dim': 16}",
                 *MACHINE]}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', COMMANDS)
def test_it_resumes_to_the_same_bits(name: str, kind: str, server: Server, tmp_path: Path) -> None:
    command = [*COMMANDS[name], '--data', write_npz(tmp_path / 'images.npz', train=64)]
    whole, output = tmp_path / 'whole', tmp_path / 'run'
    code, error, operations = server.run([*command, '--output', str(whole)], whole, kind)
    assert code == 0 and operations > 20, error
    tried = min(operations, round(FACTOR))
    for at in sorted(random.Random(FACTOR).sample(range(1, operations + 1), tried)):
        shutil.rmtree(output, ignore_errors=True)
        code, error, _ = server.run([*command, '--output', str(output)], output, kind, at)
        assert code == {'kill': KILLED, 'full': 2}[kind] and error.count('\n') == (kind == 'full'), (at, code, error)
        code, error, _ = server.run([*command, '--output', str(output), '--resume'], output)
        assert code == 0 and not error, (at, code, error)
        assert_same_bits(whole, output)
        left = {path.name for path in output.iterdir()} ^ {path.name for path in whole.iterdir()}
        assert all(name.startswith('checkpoint') for name in left), (at, left)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', list(writers.COMMANDS)[:None if FACTOR > 1 else 2])
def test_files_are_there_whole_or_not_at_all(name: str, kind: str, server: Server, tmp_path: Path) -> None:
    out, file = tmp_path / 'out', tmp_path / 'old.safetensors'
    safetensors.torch.save_file({'a': torch.zeros(3)}, file)
    command = [writers.__file__, *(word.replace('OUT', str(out)).replace('FILE', str(file))
                                   for word in writers.COMMANDS[name])]

    def run(at: int = 0) -> tuple[int, str, int, set[str]]:
        return *server.run(command, out, kind, at), {str(path.relative_to(out)) for path in out.rglob('*')
                                                     if not path.is_dir()}
    out.mkdir()
    code, error, operations, whole = run()
    assert code == 0 and (operations or name == 'publish'), error   # it is copied by the system
    for at in sorted(random.Random(FACTOR).sample(range(1, operations + 1), min(operations, round(FACTOR)))):
        if at % 2 or name == 'publish':     # else there is an earlier one
            shutil.rmtree(out)
            out.mkdir()
        before = {str(path.relative_to(out)) for path in out.rglob('*') if not path.is_dir()}
        code, error, _, left = run(at)
        assert code == {'kill': KILLED, 'full': 2}[kind] and error.count('\n') == (kind == 'full'), (at, code, error)
        assert left == before or kind == 'kill', (at, left)
        if name == 'publish' and left >= whole:     # it replaces nothing
            continue
        code, error, _, after = run()
        assert code == 0 and after == whole, (at, code, error, after ^ whole)
