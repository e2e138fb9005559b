"""Figures reach each tracker on this machine alone, and a resumed run goes on in its tracked run."""
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from training_cases import run

from tinyvit_zoo import ZooError
from tinyvit_zoo.training import trackers
from tinyvit_zoo.training.run_dir import Run
from tinyvit_zoo.training.trackers import TRACKERS, open_tracker, tracker_module

STEPS = [(4, 2.), (8, 1.), (12, 0.5)]


def track(name: str, folder: Path) -> None:
    """Log two epochs, and a third after a new start."""
    folder.mkdir(exist_ok=True)
    module = tracker_module(name)
    for steps in (STEPS[:2], STEPS[2:]):
        tracker = open_tracker(name, module, folder, {'lr': 0.1, 'model': 'cct_2_3x2'})
        for step, loss in steps:
            tracker.log({'train_loss': loss}, step)
        tracker.close()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    track('tensorboard', tmp_path / 'run')
    events = EventAccumulator(str(tmp_path / 'run' / 'tensorboard')).Reload()
    assert [(event.step, event.value) for event in events.Scalars('train_loss')] == STEPS
    text = events.Tensors(events.Tags()['tensors'][0])[0].tensor_proto.string_val[0].decode()
    assert 'model = cct_2_3x2' in text


@pytest.mark.parametrize('given', [True, False])
def test_mlflow_in_a_folder(given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip('mlflow')
    pytest.importorskip('sqlalchemy')
    place = f'sqlite:///{tmp_path if given else tmp_path / "run"}/mlflow.db'
    monkeypatch.setenv('MLFLOW_TRACKING_URI', place if given else '')
    track('mlflow', tmp_path / 'run')
    assert (tmp_path / 'run' / 'mlflow.db').exists() != given
    client = mlflow.MlflowClient(place)
    found, = client.search_runs([client.get_experiment_by_name(trackers.PROJECT).experiment_id])
    history = client.get_metric_history(found.info.run_id, 'train_loss')
    assert [(metric.step, metric.value) for metric in history] == STEPS
    assert found.data.params == {'lr': '0.1', 'model': 'cct_2_3x2'} and found.info.status == 'FINISHED'
    assert found.info.run_name == 'run'


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('wandb')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    track('wandb', tmp_path / 'run')
    key = json.loads((tmp_path / 'run' / 'track.json').read_text())['id']
    files = sorted((tmp_path / 'run' / 'wandb').glob('offline-run-*/*.wandb'))
    assert [path.name for path in files] == [f'run-{key}.wandb'] * 2    # one run, to `wandb sync`
    end = time.monotonic() + 30     # its service writes after `finish`
    while not all(b'train_loss' in path.read_bytes() for path in files):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip('trackio')
    from trackio import sqlite_storage
    monkeypatch.setattr(sqlite_storage, 'TRACKIO_DIR', tmp_path)
    track('trackio', tmp_path / 'run')
    with sqlite3.connect(next(tmp_path.rglob('*.db'))) as database:
        rows = database.execute('select distinct run_name, step, metrics from metrics order by step').fetchall()
    assert [(step, json.loads(text)['train_loss']) for _, step, text in rows] == STEPS
    assert len({name for name, _, _ in rows}) == 1


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        def log(self, figures: Any, step: int) -> None:
            raise RuntimeError('the server is gone')

        def close(self) -> None:
            raise AssertionError

    run_dir = Run(tmp_path)
    run_dir.track, run_dir.tracker = 'wandb', Broken()
    for epoch in (1, 2):
        run_dir.log({'epoch': epoch, 'step': epoch, 'train_loss': 1., 'images_per_second': 9.})
    run_dir.close()
    assert capsys.readouterr().out.count('Tracking by wandb has failed (the server is gone)') == 1


@pytest.mark.parametrize('name', TRACKERS)
def test_without_the_package_nothing_begins(
        name: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        ) -> None:
    monkeypatch.setitem(sys.modules, trackers._TRACKERS[name][1], None)
    assert run(data, tmp_path / 'run', '--track', name) == 2 and not (tmp_path / 'run').exists()
    assert f"Tracking by {name} needs its package: pip install 'tinyvit-zoo[" in capsys.readouterr().err


def test_what_cannot_begin_is_one_line(tmp_path: Path) -> None:
    class Module:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError('no login\nhere')

    with pytest.raises(ZooError, match=r'Tracking by wandb cannot start \(no login here\)') as error:
        open_tracker('wandb', Module(), tmp_path, {})
    assert r'\n' not in str(error.value)
    with pytest.raises(ZooError, match='expected tensorboard, wandb, mlflow, trackio'):
        tracker_module('comet')
