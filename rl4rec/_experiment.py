"""Experiments that DVC runs in a folder of their own (`dvc exp run --queue`, `--temp`): what git does not bring there.

DVC puts into that folder what git tracks, no data that git ignores, and removes it at the end. `DVC_ROOT` names the
folder where the experiment was started.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from rl4rec.params import DataParams, Params, TrackingParams

_DATABASE = "sqlite:///"

logger = logging.getLogger(__name__)


def seen_from_here(params: Params, here: Path = Path()) -> Params:
    """Settings whose relative paths, meant from where the experiment was started, lead there from `here` too.

    Args:
        params: as params.yaml has them.
        here: where the stage runs.

    Returns:
        The same settings, unless DVC runs an experiment in a folder of its own.
    """
    root = Path(os.environ.get("DVC_ROOT") or here).resolve()
    if "DVC_EXP_NAME" not in os.environ or root == here.resolve():
        return params
    changed = {"data": _own_data(params.data, here, root), "tracking": _database(params.tracking, root)}
    return params.model_copy(update=changed)


def _own_data(data: DataParams, here: Path, root: Path) -> DataParams:
    """Data that came along (git or DVC tracks them) are those of this folder, others where the experiment started."""
    if data.path is None or (here / data.path).exists() or not (root / data.path).exists():
        return data
    return data.model_copy(update={"path": str(root / data.path)})


def _database(tracking: TrackingParams, root: Path) -> TrackingParams:
    """Runs go into the database where the experiment was started: one in this folder is removed with it."""
    if not tracking.uri.startswith(_DATABASE) or "MLFLOW_TRACKING_URI" in os.environ or not tracking.enabled:
        return tracking
    file = root / tracking.uri.removeprefix(_DATABASE)  # an absolute path stays as it is
    if not file.exists():  # made from here, it would have all artifacts in this folder
        logger.warning(
            "%s is not there yet: MLflow's runs of this experiment are removed with its folder. To keep those of the "
            "next, run a stage in %s first, or name a server in MLFLOW_TRACKING_URI",
            file,
            root,
        )
        return tracking
    return tracking.model_copy(update={"uri": f"{_DATABASE}{file}"})
