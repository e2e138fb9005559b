"""Log a run's figures to TensorBoard, Weights & Biases, MLflow or Trackio, if asked to.

The tracker's own environment variables say where figures go (WANDB_MODE=offline, MLFLOW_TRACKING_URI, ...). A
resumed run goes on in the same tracked run: `track.json` in the run directory keeps its id.
"""
import importlib
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import ZooError
from ..runtime.documents import read_document, write_document
from ..runtime.text import one_line

PROJECT = 'tinyvit_zoo'     # where the tracker groups runs; its environment variables choose another
_ID = 'track.json'


class Tracker(Protocol):
    def log(self, figures: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    """Event files in DIR/tensorboard."""

    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any], key: str) -> None:
        self.make, self.folder, self.settings = module.SummaryWriter, folder / 'tensorboard', settings
        self.writer: Any = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if self.writer is None:     # what a resumed run does again counts once
            self.writer = self.make(str(self.folder), purge_step=step)
            self.writer.add_text('recipe', '\n'.join(f'    {key} = {value}' for key, value in self.settings.items()))
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


class _Wandb:
    """A run of Weights & Biases; Trackio has the same interface."""

    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any], key: str) -> None:
        self.run = module.init(project=PROJECT, id=key, name=folder.name, config=dict(settings), dir=str(folder),
                               resume='allow', settings=module.Settings(console='off', silent=True))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.run.log(dict(figures), step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio(_Wandb):
    """A run in Trackio's folder on this machine."""

    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any], key: str) -> None:
        self.run = module.init(
            project=PROJECT, name=f'{folder.name}-{key}', config=dict(settings), resume='allow', embed=False)


class _MLflow:
    """A run in the place that MLFLOW_TRACKING_URI names, or in DIR/mlflow.db."""

    def __init__(self, module: Any, folder: Path, settings: Mapping[str, Any], key: str) -> None:
        uri = os.environ.get('MLFLOW_TRACKING_URI') or f'sqlite:///{(folder / "mlflow.db").resolve()}'
        self.client, self.metric = module.MlflowClient(uri), module.entities.Metric
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self.client.create_experiment(PROJECT)
        runs = self.client.search_runs([experiment], f"tags.key = '{key}'")
        self.key = (runs[0] if runs else self.client.create_run(
            experiment, tags={'key': key}, run_name=folder.name)).info.run_id
        self.client.update_run(self.key, 'RUNNING')
        if not runs:
            params = [module.entities.Param(name, str(value)[:500]) for name, value in settings.items()]
            self.client.log_batch(self.key, params=params)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.key, [self.metric(name, value, now, step) for name, value in figures.items()])

    def close(self) -> None:
        self.client.set_terminated(self.key)


# name: class, module, and how to get that
_TRACKERS: Mapping[str, tuple[Callable[..., Tracker], str, str]] = {
    'tensorboard': (_TensorBoard, 'torch.utils.tensorboard', 'train'), 'wandb': (_Wandb, 'wandb', 'wandb'),
    'mlflow': (_MLflow, 'mlflow', 'mlflow'), 'trackio': (_Trackio, 'trackio', 'trackio')}
TRACKERS = tuple(_TRACKERS)


def tracker_module(name: str) -> Any:
    """Import a tracker's library; ZooError where there is none."""
    if name not in _TRACKERS:
        raise ZooError(f'track is {name!r}, expected {", ".join(TRACKERS)}.')
    try:
        return importlib.import_module(_TRACKERS[name][1])
    except ImportError as e:
        raise ZooError(f"Tracking by {name} needs its package: pip install 'tinyvit-zoo[{_TRACKERS[name][2]}]'.") from e


def open_tracker(name: str, module: Any, folder: Path, settings: Mapping[str, Any]) -> Tracker:
    """Begin a tracked run for a run directory, or go on with its own."""
    path = folder / _ID
    if not path.exists():
        write_document(path, {'id': uuid.uuid4().hex[:8]})
    key = read_document(path, {'id': str}, 'remove it, and another tracked run begins')['id']
    try:
        return _TRACKERS[name][0](module, folder, settings, key)
    except Exception as e:  # each library has its own
        raise ZooError(f'Tracking by {name} cannot start ({one_line(e)}): check its settings, or leave it out.') from e
