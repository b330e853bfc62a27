"""Promotion in the MLflow registry: aliases `candidate` and `champion` of one registered model.

Side effects on a shared server are a step of CI, not a stage of DVC. One promotion runs at a time: the lock is a
registered model of its own, because making one is the operation that every MLflow backend does atomically.
"""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from rl4rec._io import write_json
from rl4rec.algorithms import trained_keys
from rl4rec.data.dataset import PreparedData, load_prepared
from rl4rec.data.oddities import NOTABLE
from rl4rec.errors import UserError, shown
from rl4rec.evaluation.files import load_evaluation
from rl4rec.evaluation.protocols import Evaluation
from rl4rec.metrics import MetricKey, metric_key
from rl4rec.model.load import weights_digest
from rl4rec.ops.download import download_policy
from rl4rec.ops.gate import Decision, Measured, decide
from rl4rec.ops.measure import comparable, evaluate_elsewhere, measured
from rl4rec.ops.registry import CHAMPION, DATA, FEEDBACK, REASON, REPLACED, WEIGHTS, Registry
from rl4rec.ops.tracking import connect, log_policy_model, named
from rl4rec.params import Params

logger = logging.getLogger(__name__)


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
    validation = metric_key(*MetricKey.parse(gate.metric)._replace(fold="valid"))
    for evaluation in evaluations.values():
        _require_measured(evaluation, (validation, gate.metric, *gate.guards))
        _require_telling(evaluation, gate.metric)
    name = policy or max(evaluations, key=lambda each: evaluations[each].metrics[validation])
    ours = measured(evaluations[name], (gate.metric, *gate.guards))
    weights = weights_digest(folder / "models" / name)
    try:
        client, _ = connect(params.tracking, patient=True)
        registry = Registry(client, params.tracking.registered_model)
        with registry.lock():
            champion = registry.version(CHAMPION)
            again = _is_of(champion, weights, data.data_hash)
            lost = None if champion is None else _lost(champion, weights if again else None)
            if lost is not None:
                logger.warning("the champion cannot be served: %s", lost)
            elif again and champion is not None:
                return Decision(False, f"{name} is the champion already (version {champion.version})")
            feedback = "latest" if "latest" in (params.sft.feedback, params.rl.feedback) else "training"
            tags = _lineage(folder) | {
                WEIGHTS: weights, DATA: data.data_hash, FEEDBACK: feedback, "rl4rec.policy": name
            }  # fmt: skip
            with mlflow.start_run(run_name=f"promote-{name}", tags={"rl4rec.stage": "promote", **tags}) as run:
                model = log_policy_model(folder / "models" / name, data)
                for file in (folder / "metrics" / f"{name}.json", folder / "ranks" / f"{name}.parquet"):
                    mlflow.log_artifact(str(file), "evaluation")
                version = registry.add(model, run.info.run_id, tags)
                if again and champion is not None:
                    gone = f"the files of version {champion.version} are lost"
                    decision = Decision(True, f"{name} is the champion, but {gone}")
                    replaced = champion.tags.get(REPLACED)  # nobody wants back what is lost
                else:
                    theirs = None if champion is None else _champion(champion, evaluations[name], data, params)
                    decision = decide(ours, theirs, gate, params.compare)
                    replaced = None if champion is None else str(champion.version)
                _record(decision)
                registry.tag(version, REASON, f"{'promoted' if decision.promoted else 'refused'}: {decision.reason}")
                if decision.promoted:
                    registry.crown(version, replaced=replaced)
                return decision
    except MlflowException as error:
        raise UserError(_unavailable(error)) from None


def roll_back(params: Params) -> tuple[str, str]:
    """Give the champion's alias back to the version it replaced; (from, to)."""
    try:
        client, _ = connect(params.tracking, patient=True)
        registry = Registry(client, params.tracking.registered_model)
        with registry.lock():
            moved = registry.roll_back()
            champion = registry.version(CHAMPION)
            lost = None if champion is None else _lost(champion, None)
            if lost is not None:
                logger.warning("the champion cannot be served: %s", lost)
            return moved
    except MlflowException as error:
        raise UserError(_unavailable(error)) from None


def _unavailable(error: MlflowException) -> str:
    return (
        f"MLflow registry: {str(error).splitlines()[0][:300]}. See that the server of MLFLOW_TRACKING_URI or "
        "tracking.uri answers, and run the command again"
    )


def _evaluation(folder: Path, name: str, data: PreparedData) -> Evaluation:
    found = load_evaluation(folder / "metrics" / f"{name}.json", folder / "ranks" / f"{name}.parquet")
    of = found.protocol["data_hash"]
    if of != data.data_hash:
        raise UserError(
            f"metrics/{name}.json is of other data ({of}) than data/prepared ({data.data_hash}). Run `dvc repro`."
        )
    return found


def _require_measured(evaluation: Evaluation, keys: Iterable[str]) -> None:
    for key in keys:
        if key not in evaluation.metrics:
            fold = MetricKey.parse(key).fold
            known = ", ".join(sorted(each for each in evaluation.metrics if each.startswith(f"{fold}/")))
            raise UserError(f"params.yaml: compare.gate: {key} is not measured. Choose one of {known}")


def _require_telling(evaluation: Evaluation, key: str) -> None:
    """Refuse to decide by a figure that counts every repeat purchase as missed, where repeats are many."""
    metric = MetricKey.parse(key)
    share = evaluation.protocol["repeated_targets"][metric.fold] / evaluation.protocol["targets"][metric.fold]
    if metric.protocol == "full" and share >= NOTABLE:
        raise UserError(
            f"params.yaml: compare.gate.metric: {share * 100:.1f} % of the targets are items that the user has taken "
            f"before, and {key} counts each as missed. Set it to "
            f"{metric_key(*metric._replace(protocol='full_unmasked'))}"
        )


def _is_of(version: ModelVersion | None, weights: str, data_hash: str) -> bool:
    """Whether a version has these weights, trained on these data."""
    return version is not None and (version.tags.get(WEIGHTS), version.tags.get(DATA)) == (weights, data_hash)


def _lost(version: ModelVersion, weights: str | None) -> str | None:
    """Why a version cannot be served; None: its files are there, and if `weights` are given, hold them."""
    address = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if weights is None and any(file.path == "MLmodel" for file in mlflow.artifacts.list_artifacts(address)):
                return None
            policy, _ = download_policy(address, Path(scratch))
        except (UserError, MlflowException) as error:
            return str(error)
        if weights not in (None, weights_digest(policy)):
            return f"{address}: its weights are not those that were registered"
    return None


def _champion(version: ModelVersion, candidate: Evaluation, data: PreparedData, params: Params) -> Measured:
    """The champion on the candidate's data and protocol: its own evaluation if that fits, else a new one."""
    name, address = version.tags.get("rl4rec.policy", ""), f"models:/{version.name}/{version.version}"
    if name not in trained_keys():  # it becomes a part of paths
        raise UserError(
            f"{version.name} version {version.version}: its tag rl4rec.policy is {shown(name)}, expected one of "
            f"{', '.join(trained_keys())}. Mend the tag in the MLflow UI, or go back with `rl4rec rollback`"
        )
    with tempfile.TemporaryDirectory() as scratch:
        try:
            files = Path(
                mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="evaluation", dst_path=scratch)
            )
            evaluation = load_evaluation(files / f"{name}.json", files / f"{name}.parquet")
        except (MlflowException, OSError, UserError):
            evaluation = None  # its run was deleted: the model may still be there
        if evaluation is None or not comparable(evaluation, candidate):
            try:
                policy, items = download_policy(address, Path(scratch, "model"))
            except UserError as error:
                raise UserError(
                    f"the champion, version {version.version}, cannot be measured: {error} Restore its artifacts, name "
                    f"another champion with `rl4rec rollback`, or remove the alias '{CHAMPION}' of {version.name}"
                ) from None
            evaluation = evaluate_elsewhere(policy, items, data, params.evaluate)
        return measured(evaluation, (params.compare.gate.metric, *params.compare.gate.guards))


def _record(decision: Decision) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "decision.json")
        write_json(path, json.loads(json.dumps(decision.as_dict())))
        mlflow.log_artifact(str(path))
    mlflow.set_tag(REASON, f"{'promoted' if decision.promoted else 'refused'}: {decision.reason}")
    for check in decision.checks:
        mlflow.log_metric(named(f"gate/{check.metric}"), check.change)


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
