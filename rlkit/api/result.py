"""What a run left behind."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.report.folder import METRICS, SAMPLES, SUMMARY, read_metrics, read_rows


@dataclass(frozen=True)
class Result:
    """A finished run. folder: of the run; its files are read each time they are asked for."""

    folder: Path

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row for each step; rlkit/docs/metrics.md explains the columns. pandas.DataFrame(result.metrics) is a table."""
        return read_metrics(self.folder / METRICS)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Every completion, with its prompt, step, reward, rewards and advantage (None in an evaluation)."""
        return read_rows(self.folder / SAMPLES)

    @property
    def summary(self) -> dict[str, Any]:
        """status, steps, wall_seconds, the measure before and after, and held_out: all metrics of the last evaluation."""
        return dict(json.loads((self.folder / SUMMARY).read_text()))

    @property
    def model_path(self) -> Path:
        """The trained model with its tokenizer, a Hugging Face folder."""
        return self.folder / "model"
