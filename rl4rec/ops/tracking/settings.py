"""What a run is told of the settings, and which pipeline it belongs to."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from rl4rec._console import redact
from rl4rec.params import ALGORITHMS, Params

PIPELINE_TAG = "rl4rec.pipeline"
_PARAM_CHARACTERS = 6000  # of a value, MLflow's limit


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one level, keys joined with dots."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def stage_settings(params: Params, stage: str, variant: str = "") -> dict[str, object]:
    """The settings a stage works with; those of `rl.ppo` and `rl.grpo` are named alike, so that both line up."""
    settings: dict[str, Any] = params.model_dump(mode="json")
    match stage:
        case "prepare":
            return {"data": settings["data"]}
        case "sft":
            return {"policy": settings["policy"], "sft": settings["sft"]}
        case "crossfit":
            return {"sft": settings["sft"], "rl": {"crossfit": settings["rl"]["crossfit"]}}
        case "rl" | "sft_continued":
            variant = variant or stage
            rl = settings["rl"]
            algorithms = {name: rl.pop(name) for name in ALGORITHMS}
            return {"policy": settings["policy"], "rl": {"algorithm": variant, **rl, **algorithms.get(variant, {})}}
        case "evaluate":
            return {"evaluated": variant, "evaluate": settings["evaluate"]}
        case _:
            return {stage: settings.get(stage, {})}


def pipeline_id() -> str | None:
    """What the stages of one pipeline share: `RL4REC_PIPELINE_ID`, or the `dvc` process above this one, or None."""
    given = os.environ.get("RL4REC_PIPELINE_ID")
    if given:
        return given
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().parents():
            with contextlib.suppress(psutil.Error):
                if any(Path(part).name in ("dvc", "dvc.exe") for part in process.cmdline()[:3]):
                    experiment = os.environ.get("DVC_EXP_NAME", "")  # a queue's worker runs several experiments
                    return "-".join(filter(None, ["dvc", str(process.pid), f"{process.create_time():.2f}", experiment]))
    return None


def param_text(value: object) -> str:
    """A setting as MLflow takes it: without secrets, cut where it is too long."""
    text = redact(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= _PARAM_CHARACTERS else text[: _PARAM_CHARACTERS - 3] + "..."
