"""The search space against params.yaml and dvc.yaml, before anything is trained; proposals of an Optuna trial."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from optuna import Trial
from pydantic import ValidationError

from rl4rec._dvc import dvc_stages, leaves, out_name
from rl4rec.errors import UserError
from rl4rec.metrics import MetricKey
from rl4rec.ops.sweep.settings import Dimension, SweepParams
from rl4rec.ops.workspace import merge_settings
from rl4rec.params import Params
from rl4rec.settings import explain

Settings = dict[str, Any]
Value = str | int | float | bool | None


class SweptStage(NamedTuple):
    """A stage as dvc.yaml has it."""

    name: str
    script: Path
    variant: list[str]  # the script's arguments
    inputs: dict[str, str]  # what other stages make for it, and which
    code: list[str]
    reads: set[str]  # settings
    upstream: dict[str, str]  # settings that its inputs depend on, and the stage that reads them

    @property
    def own(self) -> set[str]:
        """The settings that change this stage's result and not its inputs."""
        return self.reads - self.upstream.keys()

    @property
    def seed_key(self) -> str:
        """The setting that the stage's random numbers come from."""
        return "sft.seed" if self.name == "sft" else f"rl.{self.name.removeprefix('rl@')}.seed"


def read_stage(root: Path, name: str, base: Settings) -> SweptStage:
    """Find a stage and all that it depends on in dvc.yaml."""
    stages = dict(dvc_stages(root))
    makers = {out_name(out): maker for maker, stage in stages.items() for out in stage.get("outs", [])}
    reads = {each: {leaf for key in s.get("params", []) for leaf in leaves(key, base)} for each, s in stages.items()}
    upstream: dict[str, str] = {}
    waiting, seen = [name], {name}
    while waiting:
        for dep in stages[waiting.pop()]["deps"]:
            maker = makers.get(dep)
            if maker is not None and maker not in seen:
                seen.add(maker)
                waiting.append(maker)
                upstream |= dict.fromkeys(reads[maker], maker)
    _, script, *variant = stages[name]["cmd"].split()
    deps = stages[name]["deps"]
    return SweptStage(
        name=name,
        script=root / script,
        variant=variant,
        inputs={dep: makers[dep] for dep in deps if dep in makers},
        code=[dep for dep in deps if dep not in makers],
        reads=reads[name],
        upstream=upstream,
    )


def check_sweep(where: Path, settings: SweepParams, stage: SweptStage, base: Settings, root: Path) -> None:
    """Refuse what cannot work or would not be honest in the settings of file `where`.

    Raises:
        UserError: of all keys of the space that cannot be swept, or of what the stage needs and is not there.
    """
    found = (_problem(key, dimension, stage, base) for key, dimension in settings.space.items())
    problems = [problem for problem in found if problem]
    if problems:
        raise UserError("\n".join([f"{where}: the space does not fit stage {stage.name}:", *problems]))
    k = 10 if stage.name == "sft" else base["rl"]["k"]
    if MetricKey.parse(settings.metric).k != k:
        raise UserError(
            f"{where}: metric: stage {stage.name} validates at k = {k}, got {settings.metric}. "
            f"Choose one that ends in @{k}"
        )
    for section in ("sft", "rl"):
        if base[section]["feedback"] != "training":
            raise UserError(
                f"params.yaml: {section}.feedback: trains on the validation targets; a sweep needs them. "
                "Set it to training"
            )
    for path, maker in stage.inputs.items():
        unused = (maker == "crossfit" and base["rl"]["crossfit"]["split_points"] == 0) or (
            maker == "champion" and base["sft"]["init"] == "fresh"
        )
        if not unused and not any((root / path).glob("*")):
            raise UserError(f"{root / path}: not there yet. Run `dvc repro {maker}` in {root.resolve()} first.")


def _problem(key: str, dimension: Dimension, stage: SweptStage, base: Settings) -> str | None:
    below = list(leaves(key, base))
    if key in stage.upstream:
        maker = stage.upstream[key]
        return f"  space.{key}: stage {maker} reads it too, whose results each trial takes as they are"
    if key not in stage.own:
        if below and below != [key]:
            return f"  space.{key}: names a section; its settings are {', '.join(below)}"
        near = difflib.get_close_matches(key, stage.own, n=1)
        reason = f"stage {stage.name} does not read it" if below else "unknown setting"
        return f"  space.{key}: {reason}{f'; did you mean {near[0]}?' if near else ''}"
    if key.endswith(".seed"):
        return f"  space.{key}: a seed is not tuned; `seeds` says over how many a trial is averaged"
    if key == "rl.k":
        return "  space.rl.k: the metric would not be the same in all trials"
    values = dimension.choices if dimension.choices is not None else (dimension.low, dimension.high)
    for value in values:
        error = _error_at(key, value, base)
        if error:
            return f"  space.{key}: {error['msg'].removeprefix('Value error, ')} (got {value!r})"
    if _whole(key, dimension, base) and (dimension.step or 1) % 1:
        return f"  space.{key}: step must be a whole number (got {dimension.step!r})"
    return None


def _whole(key: str, dimension: Dimension, base: Settings) -> bool:
    """Whether a range is of whole numbers: the setting refuses what lies between."""
    error = None if dimension.low is None else _error_at(key, dimension.low + 0.5, base)
    return error is not None and error["type"] == "int_from_float"


def _error_at(key: str, value: Value, base: Settings) -> Any:
    """What is wrong with one value by itself; how it goes with others is for the trial to say."""
    try:
        Params.model_validate(merge_settings(base, nested({key: value})))
    except ValidationError as error:
        return next((e for e in error.errors() if ".".join(map(str, e["loc"])) == key), None)
    return None


def propose(trial: Trial, space: dict[str, Dimension], base: Settings) -> dict[str, Value]:
    """The values that a trial tries."""
    values: dict[str, Value] = {}
    for key, of in space.items():
        if of.choices is not None:
            values[key] = trial.suggest_categorical(key, of.choices)
        elif of.low is not None and of.high is not None:
            if _whole(key, of, base):
                values[key] = trial.suggest_int(key, int(of.low), int(of.high), step=int(of.step or 1), log=of.log)
            else:
                values[key] = trial.suggest_float(key, of.low, of.high, step=of.step, log=of.log)
    return values


def present(space: dict[str, Dimension], base: Settings) -> dict[str, Value] | None:
    """The values of params.yaml itself, None where the space lacks one; a single choice is what all trials have."""
    values: dict[str, Value] = {}
    for key, of in space.items():
        values[key] = of.choices[0] if of.choices and len(of.choices) == 1 else value_at(base, key)
        if not of.contains(values[key]):
            return None
    return values


def changed(base: Settings, changes: Mapping[str, Value]) -> Params:
    """All settings of a trial.

    Raises:
        UserError: the values do not go together.
    """
    try:
        return Params.model_validate(merge_settings(base, nested(changes)))
    except ValidationError as error:
        raise UserError(explain("these values", error)) from None


def nested(changes: Mapping[str, Value]) -> Settings:
    """Dotted keys as nested settings."""
    found: Settings = {}
    for key, value in changes.items():
        *sections, name = key.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return found


def value_at(settings: Settings, key: str) -> Any:
    """A setting by its dotted key."""
    for part in key.split("."):
        settings = settings[part]
    return settings


def study_digest(settings: SweepParams, stage: SweptStage, base: Settings, root: Path) -> str:
    """Of all that a trial's result depends on: trials of other settings, code, data or start are another study."""
    fixed = {key: value_at(base, key) for key in sorted(stage.reads) if key not in settings.space}
    found = hashlib.sha256()
    found.update(json.dumps([settings.model_dump(mode="json", exclude={"trials", "timeout_s"}), fixed]).encode())
    for dep in sorted([*stage.inputs, *stage.code]):
        for path in sorted([root / dep, *(root / dep).rglob("*")]):
            if path.is_file():
                found.update(path.read_bytes())
    return found.hexdigest()[:12]
