"""MLflow: one run a sweep, a child run a trial. As in `tracking`, what fails here is a warning and no more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import TrialPruned

from rl4rec.ops.tracking import StageRun, connect, directly, guard
from rl4rec.params import TrackingParams

if TYPE_CHECKING:
    from mlflow import MlflowClient

SWEEP_TAG, STATE_TAG = "rl4rec.sweep", "rl4rec.trial_state"
_PARENT = "mlflow.parentRunId"


class SweepRun(StageRun):
    """The parent run; without tracking it does nothing, and neither do its children."""

    _mlflow: MlflowClient | None = None
    _experiment = run_id = ""

    @classmethod
    def start(cls, params: TrackingParams, root: Path, stage: str, study: str) -> SweepRun:
        """The run of this study, made or, after an interruption, found again."""
        if not params.enabled:
            return cls()
        with guard("the sweep's run"):
            import mlflow

            client, experiment = connect(params, root)
            found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{study}'", max_results=1)
            if found:
                run = mlflow.start_run(run_id=found[0].info.run_id)
                left = f"tags.`{_PARENT}` = '{run.info.run_id}' and attributes.status = 'RUNNING'"
                for child in client.search_runs([experiment], left):
                    client.set_tag(child.info.run_id, STATE_TAG, "interrupted")
                    client.set_terminated(child.info.run_id, "KILLED")
            else:
                run = mlflow.start_run(run_name=f"sweep-{stage}", tags={SWEEP_TAG: study, "rl4rec.stage": stage})
            run_id = str(run.info.run_id)
            started = cls(directly(client, experiment, run_id))
            started._mlflow, started._experiment, started.run_id = client, experiment, run_id
            return started
        return cls()

    def end(self, status: str) -> None:
        """Close the run."""
        if self._mlflow is not None:
            with guard("the end of the sweep's run"):
                import mlflow

                mlflow.end_run(status)

    @contextmanager
    def trial(self, number: int, changes: Mapping[str, object]) -> Iterator[StageRun]:
        """A child run, whose state is that of the trial within."""
        run, run_id = StageRun(), None
        if self._mlflow is not None:
            with guard("a trial"):
                tags = {_PARENT: self.run_id, "rl4rec.trial": str(number)}
                child = self._mlflow.create_run(self._experiment, tags=tags, run_name=f"trial-{number}")
                run_id = str(child.info.run_id)
                run = StageRun(directly(self._mlflow, self._experiment, run_id))
        run.log_params(changes)
        state, status = "interrupted", "KILLED"
        try:
            yield run
            state, status = "complete", "FINISHED"
        except TrialPruned:
            state = "pruned"
            raise
        except Exception:
            state, status = "failed", "FAILED"
            raise
        finally:
            run.set_tags({STATE_TAG: state})
            if self._mlflow is not None and run_id is not None:
                with guard("the end of a trial"):
                    self._mlflow.set_terminated(run_id, status)
