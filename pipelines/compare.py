"""Compare: all evaluated policies over the same users (`metrics/comparison.json`, `reports/`)."""

import logging
from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec._io import write_json
from rl4rec._stage import run_stage
from rl4rec.algorithms import ORACLE, evaluated_keys
from rl4rec.data.dataset import load_prepared
from rl4rec.evaluation.files import load_evaluation, load_slates
from rl4rec.evaluation.protocols import evaluate_oracle
from rl4rec.ops.tracking import stage_run
from rl4rec.params import Params
from rl4rec.report import compare_policies, write_report
from rl4rec.report import examples as shown
from rl4rec.report.answers import questions
from rl4rec.report.logs import load_log

METRICS, RANKS, SLATES, LOGS, REPORTS = map(Path, ("metrics", "ranks", "slates", "logs", "reports"))

logger = logging.getLogger("rl4rec.pipelines.compare")


def main(params: Params) -> None:
    data = load_prepared("data/prepared")
    with stage_run("compare", params) as run:
        run.log_dataset(data, context="evaluation")
        names = evaluated_keys()
        evaluations = {name: load_evaluation(METRICS / f"{name}.json", RANKS / f"{name}.parquet") for name in names}
        oracle = evaluate_oracle(data, params.evaluate)
        if oracle is not None:
            evaluations[ORACLE] = oracle
        logs = {name: log for name in names if (log := load_log(LOGS / f"{name}.jsonl")) is not None}
        comparison = compare_policies(evaluations, params.compare, k=params.rl.k)
        slates = {
            name: load_slates(path, users=evaluations[name].users_of("test"), num_items=data.num_items)
            for name in shown.shown_policies()
            if (path := SLATES / f"{name}.parquet").exists()
        }
        examples, notes = shown.find_examples(evaluations, slates, data, k=params.rl.k, seed=params.compare.seed)
        write_json(METRICS / "comparison.json", comparison)
        markdown, html = write_report(comparison, logs, params.rl, REPORTS, examples=examples, notes=notes)
        for pair, rows in comparison.items():
            if "_vs_" in pair:
                run.log_metrics({f"{pair}/{key}": row["delta"] for key, row in rows.items()})
        for path in (markdown, html, METRICS / "comparison.json"):
            run.log_artifact(path, folder="report")
        for path in sorted((REPORTS / "plots").glob("*.png")):
            run.log_artifact(path, folder="report/plots")
    for question in questions(comparison):
        for answer in question.answers:
            logger.info("%s %s: %s", question.text, answer.protocol, answer.sentence)
    logger.info("report: %s", html.resolve())


if __name__ == "__main__":
    run_stage(main)
