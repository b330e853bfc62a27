"""Promotion in the MLflow registry: aliases `candidate` and `champion` of one registered model.

Side effects on a shared server are a step of CI, not a stage of DVC. One promotion runs at a time: the lock is a
registered model of its own, because making one is the operation that every MLflow backend does atomically.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import get_args

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo

from rl4rec.data.prepared import PreparedData, load_prepared
from rl4rec.errors import UserError, shown
from rl4rec.evaluation.files import load_evaluation, write_json
from rl4rec.evaluation.protocols import Evaluation
from rl4rec.params import Params, Trained
from rl4rec.registry.decision import Decision, Measured, decide
from rl4rec.registry.download import download_policy
from rl4rec.registry.measure import comparable, evaluate_elsewhere, measured
from rl4rec.tracking import connect, log_policy_model
from rl4rec.trainers.checkpoints import weights_digest

CHAMPION, CANDIDATE = "champion", "candidate"
REPLACED, WEIGHTS, DATA, REASON = "rl4rec.replaced", "rl4rec.weights", "rl4rec.data_hash", "rl4rec.decision"
_LOCK_SECONDS = 3600.0  # a promotion takes minutes: an older lock is of one that died


class Registry:
    """The versions of one registered model."""

    def __init__(self, client: MlflowClient, name: str) -> None:
        self._client, self._name = client, name

    def version(self, alias: str) -> ModelVersion | None:
        """The version that an alias names, or None."""
        try:
            return self._client.get_model_version_by_alias(self._name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # no such model, or no such alias
            raise

    def add(self, model: ModelInfo, run_id: str, tags: dict[str, str]) -> ModelVersion:
        """Register a logged model as the newest version, and as the candidate."""
        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._client.create_model_version(
            self._name, source=model.model_uri, run_id=run_id, model_id=model.model_id, tags=tags
        )
        self._client.set_registered_model_alias(self._name, CANDIDATE, version.version)
        return version

    def crown(self, version: ModelVersion, *, replaced: ModelVersion | None) -> None:
        """Make a version the champion, and remember which one it replaces."""
        if replaced is not None:
            self.tag(version, REPLACED, str(replaced.version))
        self._client.set_registered_model_alias(self._name, CHAMPION, version.version)

    def tag(self, version: ModelVersion, key: str, value: str) -> None:
        """Tag a version."""
        self._client.set_model_version_tag(self._name, str(version.version), key, value)

    def roll_back(self) -> tuple[str, str]:
        """Give the alias back to the version that the champion replaced; (from, to).

        Raises:
            UserError: there is no champion, or it replaced nothing.
        """
        champion = self.version(CHAMPION)
        if champion is None:
            raise UserError(f"{self._name}: there is no champion to roll back")
        earlier = champion.tags.get(REPLACED)
        if earlier is None:
            raise UserError(f"{self._name}: version {champion.version} is the first champion, there is no earlier one")
        self._client.set_registered_model_alias(self._name, CHAMPION, earlier)
        self.tag(champion, "rl4rec.rolled_back", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        return str(champion.version), earlier

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the only right to change the aliases.

        Raises:
            UserError: somebody else holds it.
        """
        name = f"{self._name}.promotion-lock"
        owner = f"{socket.gethostname()} process {os.getpid()}"
        for attempt in (1, 2):
            try:
                self._client.create_registered_model(name, tags={"owner": owner, "since": f"{time.time():.0f}"})
                break
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                self._clear_if_stale(name, last=attempt == 2)
        try:
            yield
        finally:
            self._client.delete_registered_model(name)

    def _clear_if_stale(self, name: str, *, last: bool) -> None:
        try:
            tags = self._client.get_registered_model(name).tags
        except MlflowException:
            return  # given back in between
        age = time.time() - float(tags.get("since", 0))
        if age < _LOCK_SECONDS or last:
            raise UserError(
                f"another promotion of {self._name} is under way ({tags.get('owner', 'unknown')}, for {age:.0f} s). "
                f"Try again when it is done; if it died, remove the registered model '{name}' in the MLflow UI"
            )
        self._client.delete_registered_model(name)


def promote(folder: Path, params: Params, *, policy: str | None = None) -> Decision:
    """Register the best candidate of a pipeline run, and make it the champion if the gate lets it through.

    Args:
        folder: where `dvc repro` ran.
        params: its settings.
        policy: which policy; None: that of `compare.gate.candidates` with the best validation of the gate's metric.

    Raises:
        UserError: an evaluation is missing or of other data, or the registry cannot be reached.
    """
    gate, data = params.compare.gate, load_prepared(folder / "data" / "prepared")
    evaluations = {name: _evaluation(folder, name, data) for name in ([policy] if policy else gate.candidates)}
    name = policy or max(evaluations, key=lambda each: _validation(evaluations[each], gate.metric))
    ours = measured(evaluations[name], gate.fold)
    for metric in (gate.metric, *gate.guards):
        if metric not in ours.users and metric not in ours.values:
            known = ", ".join(sorted({*ours.users, *ours.values}))
            raise UserError(f"params.yaml: compare.gate: {metric} is not measured; there is {known}")
    weights = weights_digest(folder / "models" / name)
    try:
        client, _ = connect(params.tracking, patient=True)
        registry = Registry(client, params.tracking.registered_model)
        with registry.lock():
            champion = registry.version(CHAMPION)
            if champion is not None and (champion.tags.get(WEIGHTS), champion.tags.get(DATA)) == (
                weights,
                data.data_hash,
            ):
                return Decision(False, f"{name} is the champion already (version {champion.version})")
            tags = _lineage(folder) | {WEIGHTS: weights, DATA: data.data_hash, "rl4rec.policy": name}
            with mlflow.start_run(run_name=f"promote-{name}", tags={"rl4rec.stage": "promote", **tags}) as run:
                model = log_policy_model(folder / "models" / name, data)
                for file in (folder / "metrics" / f"{name}.json", folder / "ranks" / f"{name}.parquet"):
                    mlflow.log_artifact(str(file), "evaluation")
                version = registry.add(model, run.info.run_id, tags)
                theirs = None if champion is None else _champion(champion, evaluations[name], data, params)
                decision = decide(ours, theirs, gate, params.compare)
                _record(decision)
                registry.tag(version, REASON, f"{'promoted' if decision.promoted else 'refused'}: {decision.reason}")
                if decision.promoted:
                    registry.crown(version, replaced=champion)
                return decision
    except MlflowException as error:
        raise UserError(f"MLflow registry: {str(error).splitlines()[0][:300]}") from None


def roll_back(params: Params) -> tuple[str, str]:
    """Give the champion's alias back to the version it replaced; (from, to)."""
    try:
        client, _ = connect(params.tracking, patient=True)
        registry = Registry(client, params.tracking.registered_model)
        with registry.lock():
            return registry.roll_back()
    except MlflowException as error:
        raise UserError(f"MLflow registry: {str(error).splitlines()[0][:300]}") from None


def _evaluation(folder: Path, name: str, data: PreparedData) -> Evaluation:
    found = load_evaluation(folder / "metrics" / f"{name}.json", folder / "ranks" / f"{name}.parquet")
    of = found.metrics["protocol"]["data_hash"]
    if of != data.data_hash:
        raise UserError(
            f"metrics/{name}.json is of other data ({of}) than data/prepared ({data.data_hash}). Run `dvc repro`."
        )
    return found


def _validation(evaluation: Evaluation, metric: str) -> float:
    protocol, _, key = metric.partition("/")
    try:
        return float(evaluation.metrics["valid"][protocol][key])
    except KeyError:
        raise UserError(
            f"params.yaml: compare.gate.metric: {metric} is not in the evaluation of {evaluation.metrics['policy']}"
        ) from None


def _champion(version: ModelVersion, candidate: Evaluation, data: PreparedData, params: Params) -> Measured:
    """The champion on the candidate's data and protocol: its own evaluation if that fits, else a new one."""
    with tempfile.TemporaryDirectory() as scratch:
        name = version.tags.get("rl4rec.policy", "")
        if name not in get_args(Trained):  # it becomes a part of paths
            raise UserError(f"{version.name} version {version.version}: its tag rl4rec.policy is {shown(name)}")
        files = Path(
            mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="evaluation", dst_path=scratch)
        )
        evaluation = load_evaluation(files / f"{name}.json", files / f"{name}.parquet")
        if not comparable(evaluation, candidate):
            policy, items = download_policy(f"models:/{version.name}/{version.version}", Path(scratch, "model"))
            evaluation = evaluate_elsewhere(policy, items, data, params.evaluate)
        return measured(evaluation, params.compare.gate.fold)


def _record(decision: Decision) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "decision.json")
        write_json(path, json.loads(json.dumps(decision.as_dict())))
        mlflow.log_artifact(str(path))
    mlflow.set_tag(REASON, f"{'promoted' if decision.promoted else 'refused'}: {decision.reason}")
    for check in decision.checks:
        mlflow.log_metric(f"gate/{check.metric.replace('@', '_at_')}", check.change)


def _lineage(folder: Path) -> dict[str, str]:
    """What links a version to what made it: the commit, and the lock that names all inputs of all stages."""
    lock = folder / "dvc.lock"
    tags = {"rl4rec.dvc_lock": sha256(lock.read_bytes()).hexdigest()[:16]} if lock.exists() else {}
    git = ["git", "-C", str(folder)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode == 0:
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
        tags["rl4rec.git_commit"] = commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
    return tags
