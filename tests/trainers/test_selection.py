"""Which evaluation is the best, and after which a run stops early: worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from rlkit.trainers.selection import Evaluations, Selection, load_evaluations

NAN = math.nan


def evaluate(selection: Selection, *values: float) -> Evaluations:
    """One evaluation a step, the first before training."""
    evaluations = Evaluations()
    for step, value in enumerate(values):
        evaluations = evaluations.add(step, {f"eval/{selection.metric}": value, "eval/other": float(step)}, selection)
    return evaluations


@pytest.mark.parametrize(
    ("metric", "values", "best", "since"),
    [
        ("accuracy", [0.5, 0.7, 0.6, 0.7], 1, 2),  # of equal ones the first
        ("accuracy", [0.9, 0.7, 0.6], 0, 2),  # the one before training counts
        ("loss", [0.5, 0.7, 0.4], 2, 0),
        ("accuracy", [NAN, 0.1, NAN, 0.2], 3, 0),  # nothing was graded
        ("loss", [NAN, NAN], 0, 1),
    ],
)
def test_the_best_and_how_long_ago_it_was(metric: str, values: list[float], best: int, since: int) -> None:
    found = evaluate(Selection(metric, patience=1), *values)
    assert found.best is not None and (found.best.step, found.since_best, found.count) == (best, since, len(values))
    assert found.best.held_out["eval/other"] == best and found.first["eval/other"] == 0
    loaded = load_evaluations(json.loads(json.dumps(asdict(found))))
    assert repr(loaded) == repr(found)  # NaN is not equal to itself


def test_patience_ends_only_right_after_an_evaluation() -> None:
    found = evaluate(Selection("accuracy"), 0.5, 0.7, 0.6, 0.7)
    assert [found.is_exhausted(3, patience) for patience in (None, 1, 2, 3)] == [False, True, True, False]
    assert not found.is_exhausted(4, 2)  # a run that goes on from step 4, evaluated at 3
    assert not evaluate(Selection("accuracy"), 0.5).is_exhausted(0, 1)


def test_rows_hold_the_best_only_where_something_is_selected_by_it() -> None:
    found = evaluate(Selection("accuracy"), 0.5, 0.7, 0.6)
    assert found.metrics(Selection("accuracy")) == {}
    assert found.metrics(Selection("accuracy", best=True)) == {"eval/best": 0.7, "eval/since_best": 1.0}
