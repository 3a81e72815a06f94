"""MLflow, by its client. The only file that imports mlflow; the package mlflow-skinny suffices.

Telemetry: MLFLOW_DISABLE_TELEMETRY=true. The store is that of MLFLOW_TRACKING_URI; without it, and offline where that is a server, it is
the folder RUN/mlflow, which MLflow reads with MLFLOW_ALLOW_FILE_STORE=true.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from rlkit.errors import UserError
from rlkit.report.tracker import TrackerSettings

STATES = {"done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
LOCAL_STORES = ("", "file", "sqlite")  # schemes
BATCH = 100  # parameters that one call may set
LONGEST_VALUE = 6000  # characters of a parameter


def require_mlflow(offline: bool) -> Any:
    """Imports mlflow. Raises UserError where it is missing."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read at import
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it insists on a database, which mlflow-skinny does not have
    try:
        import mlflow
    except ImportError as error:
        raise UserError("report.mlflow needs the package mlflow: pip install mlflow-skinny, or set report.mlflow=null") from error
    return mlflow


class MLflow:
    """One MLflow run. Its id is kept in RUN/mlflow-id, so that a resume continues it. Raises UserError where the package is missing."""

    def __init__(self, settings: TrackerSettings, project: str) -> None:
        mlflow = require_mlflow(settings.offline)
        self._entities, self._attempt = mlflow.entities, settings.attempt
        self._client = client = mlflow.MlflowClient(choose_store(settings))
        id_file = settings.folder / "mlflow-id"
        if id_file.exists():
            self._id = id_file.read_text()
            client.update_run(self._id, status="RUNNING")
        else:
            experiment = client.get_experiment_by_name(project)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(project)
            tags = {"rlkit.group": settings.group, "rlkit.tags": ", ".join(settings.tags)}
            self._id = client.create_run(experiment_id, run_name=settings.name, tags=tags).info.run_id
            id_file.write_text(self._id)
            parameters = [mlflow.entities.Param(key, value) for key, value in flatten_parameters(settings.config)]
            for start in range(0, len(parameters), BATCH):
                client.log_batch(self._id, params=parameters[start : start + BATCH])
        client.log_dict(self._id, dict(settings.config), "recipe.yaml")  # may have more steps after a resume; a parameter cannot change

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one step."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[
                self._entities.Metric(name.replace("@", "_at_"), float(value), now, step)  # eval/pass@8: MLflow takes no @
                for name, value in metrics.items()
                if value is not None
            ],
        )

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Send a table of samples, an artifact of its own."""
        table = {column: [sample[column] for sample in samples] for column in samples[0]}
        # The samples of one step are appended to each other, those of another attempt are not.
        self._client.log_table(self._id, table, f"samples/attempt-{self._attempt}/step-{step:06d}.json")

    def close(self, state: str) -> None:
        """End the MLflow run: FINISHED, KILLED or FAILED."""
        self._client.set_terminated(self._id, STATES[state])


def choose_store(settings: TrackerSettings) -> str:
    """The URI of the store."""
    wanted = os.environ.get("MLFLOW_TRACKING_URI", "")
    if wanted and not (settings.offline and urlsplit(wanted).scheme not in LOCAL_STORES):
        return wanted
    return (settings.folder / "mlflow").absolute().as_uri()


def flatten_parameters(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of the recipe, and their values as text that a parameter holds."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten_parameters(value, f"{key}.")
        else:
            yield key, str(value)[:LONGEST_VALUE]
