"""What a sweep found: `.sweep/trials.json`, `.sweep/best.yaml`, a table, and how to go on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from rl4rec._io import write_json, write_text
from rl4rec.errors import UserError
from rl4rec.ops.sweep.settings import SweepParams
from rl4rec.ops.sweep.space import nested

Row = dict[str, Any]
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
BASELINE, ERROR, SEED_VALUES, START = "params.yaml", "error", "seed_values", "start"  # attributes of a trial


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that are done. Not one that was cut off from outside: a trial that failed by itself has an error."""
    ended = study.get_trials(deepcopy=False, states=tuple(STATES))
    return [trial for trial in ended if trial.state is not TrialState.FAIL or ERROR in trial.user_attrs]


def write_results(study: optuna.Study, settings: SweepParams, folder: Path) -> list[Row]:
    """Write the table and the best settings, in the form that `rl4rec workspace --overrides` takes.

    Raises:
        UserError: no trial succeeded.
    """
    trials = counted(study)
    rows = [
        {
            "number": trial.number,
            "state": STATES[trial.state],
            "value": trial.value if trial.state is TrialState.COMPLETE else None,
            START: trial.user_attrs.get(START),
            SEED_VALUES: trial.user_attrs.get(SEED_VALUES, []),
            "validations": {str(samples): value for samples, value in trial.intermediate_values.items()},
            "settings": trial.params,
            BASELINE: trial.user_attrs.get(BASELINE, False),
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
            ERROR: trial.user_attrs.get(ERROR),
        }
        for trial in trials
    ]
    write_json(folder / "trials.json", {"study": study.study_name, "metric": settings.metric, "trials": rows})
    if not any(row["state"] == "complete" for row in rows):
        (folder / "best.yaml").unlink(missing_ok=True)
        errors = [row["error"] for row in rows if row["error"]]
        raise UserError(
            f"no trial was completed; see {folder / 'trials.json'}" + (f". The first: {errors[0]}" if errors else "")
        )
    row = best(rows)
    text = f"# Trial {row['number']} of {study.study_name}: {settings.metric} {row['value']:.5f}.\n"
    write_text(folder / "best.yaml", text + yaml.safe_dump(nested(row["settings"]), sort_keys=False))
    return rows


def best(rows: Sequence[Row]) -> Row:
    """The completed trial with the largest value, the first of equals."""
    return max((row for row in rows if row["state"] == "complete"), key=lambda row: row["value"])


def sweep_table(rows: Sequence[Row], settings: SweepParams) -> Table:
    """Trials in the order they ran, the best one bold; of one that was pruned the last validation."""
    seeds = f", mean of {settings.seeds} seeds" if settings.seeds > 1 else ""
    notes = [f"trial {row['number']} has the settings of params.yaml" for row in rows if row[BASELINE]]
    notes += [f"before training: {value:.5f}" for value in {row[START] for row in rows} - {None}]
    keys = [key for key, of in settings.space.items() if of.choices is None or len(of.choices) > 1]
    names = [key.rpartition(".")[2] for key in keys]
    if len(set(names)) < len(names):
        names = keys
    title = f"{settings.metric}{seeds}"
    table = Table("trial", *names, "value", "state", "s", title=title, caption="; ".join(notes))
    for row in rows:
        values = [*row["validations"].values(), row["value"]]
        shown = next((value for value in reversed(values) if value is not None), None)
        table.add_row(
            str(row["number"]),
            *(_text(row["settings"].get(key)) for key in keys),
            "" if shown is None else f"{shown:.5f}",
            row["state"],
            f"{row['seconds']:.0f}",
            style="bold" if row is best(rows) else "",
        )
    return table


def advice(rows: Sequence[Row], folder: Path) -> str:
    """How to run the best settings, and what its figure is worth."""
    values = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in best(rows)["settings"].items()
    }
    changes = " ".join(f"-S '{key}={value}'" for key, value in values.items())
    complete = sum(row["state"] == "complete" for row in rows)
    return (
        f"Best settings: {folder / 'best.yaml'}\n"
        f"In this project:         dvc exp run {changes}\n"
        f"In a folder of its own:  rl4rec workspace .best --overrides {folder / 'best.yaml'} && cd .best && dvc repro\n"
        f"The best of {complete} noisy figures is larger than what it stands for: run it with other seeds before "
        "believing a gain.\nThe test fold was not read."
    )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
