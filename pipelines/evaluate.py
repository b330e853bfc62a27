"""Evaluate: rank the held-out items with one policy (`metrics/`, `ranks/` and `slates/`)."""

import logging
from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec._stage import run_variant_stage
from rl4rec.algorithms import evaluated_keys
from rl4rec.data.dataset import load_prepared
from rl4rec.evaluation.files import save_evaluation
from rl4rec.evaluation.policies import load_ranking_policy
from rl4rec.evaluation.protocols import evaluate
from rl4rec.metrics import MetricKey, metric_key
from rl4rec.ops.tracking import stage_run
from rl4rec.params import Params

logger = logging.getLogger("rl4rec.pipelines.evaluate")


def main(params: Params, policy: str) -> None:
    data = load_prepared("data/prepared")
    with stage_run("evaluate", params, name=f"evaluate-{policy}") as run:
        run.log_dataset(data, context="evaluation")
        result = evaluate(policy, load_ranking_policy(policy, data, Path("models")), data, params.evaluate)
        metrics_path = Path("metrics", f"{policy}.json")
        save_evaluation(result, metrics_path, *(Path(kind, f"{policy}.parquet") for kind in ("ranks", "slates")))
        run.log_metrics(result.metrics)
        test = {key: value for key, value in result.metrics.items() if MetricKey.parse(key).fold == "test"}
        run.log_result(test, Path("models", policy))  # its validations are a learning curve there
        run.log_artifact(metrics_path, folder="metrics")
    k = min(params.evaluate.ks, key=lambda k: abs(k - 10))  # as elsewhere, where it is measured
    for protocol in ("full", f"sampled{params.evaluate.negatives}"):
        key = metric_key("test", protocol, "ndcg", k)
        logger.info("%s: %s %.4f", policy, key, result.metrics[key])


if __name__ == "__main__":
    run_variant_stage(main, evaluated_keys())
