"""The champion as the start of the next training (`sft.init: champion`): the folder `models/champion`.

- `champion.json`   `init`: `champion` with `model` and `version`, or `fresh` with the `reason`
- `policy/`         the champion as it was saved
- `items.parquet`   `item` (string): its vocabulary, row = its item index
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rl4rec.errors import UserError
from rl4rec.params import TrackingParams

logger = logging.getLogger(__name__)


def fetch_champion(params: TrackingParams, out: Path, *, held_out: bool) -> None:
    """Fetch the champion, if there is one, from the registry to the folder `out`.

    Args:
        params: names the server and the registered model.
        out: replaced as a whole.
        held_out: the validation targets are held out of the training to come, so the champion must not know them.

    Raises:
        UserError: the registry does not answer, or the champion was trained on the validation targets.
    """
    # MLflow takes seconds to import, for nothing in most runs.
    from mlflow.exceptions import MlflowException

    from rl4rec.ops.registry import CHAMPION, FEEDBACK, Registry
    from rl4rec.ops.tracking import connect

    try:
        client, _ = connect(params, patient=True)
        version = Registry(client, params.registered_model).version(CHAMPION)
    except MlflowException as error:
        raise UserError(
            f"sft.init: champion: the MLflow registry: {str(error).splitlines()[0][:300]}. "
            "Start it, or train afresh with `sft.init: fresh`"
        ) from None
    if version is not None and held_out and version.tags.get(FEEDBACK) == "latest":
        raise UserError(
            f"sft.init: champion: version {version.version} of {version.name} was trained on the validation targets "
            "(`feedback: latest`), which this training holds out to choose by. "
            "Use `sft.init: fresh`, or `feedback: latest` here too"
        )
    if version is None:
        logger.warning("sft.init: champion: there is no champion yet, training starts fresh")
        no_champion(out, "there is no champion yet")
        return
    with _replaced(out) as fresh:
        _download(f"models:/{version.name}/{version.version}", fresh)
        _describe(fresh, {"init": "champion", "model": version.name, "version": str(version.version)})


def no_champion(out: Path, reason: str) -> None:
    """Write a `champion.json` that says why training starts fresh."""
    with _replaced(out) as fresh:
        _describe(fresh, {"init": "fresh", "reason": reason})


def _download(uri: str, folder: Path) -> None:
    from rl4rec.model.load import load_policy
    from rl4rec.ops.download import download_policy
    from rl4rec.serve.recommender import read_items

    with tempfile.TemporaryDirectory() as scratch:
        policy, items = download_policy(uri, Path(scratch))
        load_policy(policy, then=f"{uri} is no policy of this project.")
        shutil.copytree(policy, folder / "policy")
        read_items(items).select("item").write_parquet(folder / "items.parquet")


def _describe(folder: Path, content: dict[str, str]) -> None:
    (folder / "champion.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of `out` when the block succeeds."""
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
