"""MLflow: one parent run a pipeline, a child run a stage.

Tracking never stops or delays a stage: what is to be logged goes to a file (`outbox`) from which a thread sends it.
What a server did not take stays there, and is sent by the next stage or by `rl4rec sync`, once.

DVC starts every stage as a process of its own. Stages belong together when they have the same `RL4REC_PIPELINE_ID`
or, without it, the same `dvc` process above them; a stage run by hand is a pipeline of its own.
"""

from rl4rec.ops.tracking.model import log_policy_model
from rl4rec.ops.tracking.outbox import sync
from rl4rec.ops.tracking.run import StageRun, directly, named, replace_run, stage_run
from rl4rec.ops.tracking.server import connect, guard, use_server
from rl4rec.ops.tracking.settings import PIPELINE_TAG, flatten, pipeline_id, stage_settings
from rl4rec.ops.tracking.training import TrainingRun, training_run

__all__ = [
    "PIPELINE_TAG",
    "StageRun",
    "TrainingRun",
    "connect",
    "directly",
    "flatten",
    "guard",
    "log_policy_model",
    "named",
    "pipeline_id",
    "replace_run",
    "stage_run",
    "stage_settings",
    "sync",
    "training_run",
    "use_server",
]
