"""Starting from the champion: what is fetched, and what of it enters a new policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoTokenizer

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.create import create_policy, start_from_champion
from rl4rec.model.policy import SlatePolicy
from rl4rec.ops.champion import fetch_champion, no_champion
from rl4rec.ops.promote import promote
from rl4rec.ops.registry import CHAMPION, FEEDBACK
from rl4rec.params import Params
from tests.ops.conftest import ITEMS, NAME, PARAMS, prepared, put, sequences


def fresh_policy(data: PreparedData, params: Params = PARAMS) -> SlatePolicy:
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_folder)
    return create_policy(params.policy, data.item_ids, tokenizer)[0].train(False)


def described(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "champion.json").read_text()))


def test_without_a_champion_training_starts_fresh(project: Path) -> None:
    start = project / "models/champion"
    fetch_champion(PARAMS.tracking, start, held_out=True)
    assert described(start) == {"init": "fresh", "reason": "there is no champion yet"}
    policy = fresh_policy(data := prepared(project, sequences(60)))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    assert not start_from_champion(policy, data.item_ids, start)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_on_the_same_catalogue_the_start_is_the_champion(project: Path) -> None:
    put(project, "grpo", 150)
    promote(project, PARAMS, policy="grpo")
    start = project / "models/champion"
    no_champion(start, "of an earlier run")
    fetch_champion(PARAMS.tracking, start, held_out=True)
    assert described(start) == {"init": "champion", "model": NAME, "version": "1"}
    policy = fresh_policy(data := prepared(project, sequences(60)))
    assert start_from_champion(policy, data.item_ids, start)
    champion = SlatePolicy.from_pretrained(project / "models/grpo").train(False)
    for row in range(5):
        history = data.sequences[row][:-1]
        assert torch.equal(policy.scores([history]), champion.scores([history]))


def test_items_keep_their_embeddings_in_another_catalogue_and_new_ones_get_like_ones(project: Path) -> None:
    put(project, "grpo", 150)
    promote(project, PARAMS, policy="grpo")
    start = project / "models/champion"
    fetch_champion(PARAMS.tracking, start, held_out=True)
    # new items come first, so that every index moves; i19 is gone
    later = prepared(project, ["new a0 a1 a2 a0 a1", *sequences(60, items=ITEMS - 1)])
    assert later.item_ids[:3] == ["a0", "a1", "a2"]
    policy = fresh_policy(later)
    assert start_from_champion(policy, later.item_ids, start)
    champion = SlatePolicy.from_pretrained(project / "models/grpo").train(False)
    theirs = pl.read_parquet(start / "items.parquet")["item"].to_list()
    ours, known = policy.item_embeddings().detach(), champion.item_embeddings().detach()
    for row, item in enumerate(later.item_ids[3:], start=3):
        assert torch.equal(ours[row], known[theirs.index(item)])
    assert not torch.equal(ours[0], ours[1])
    assert ours[:3].norm(dim=1).mean() == pytest.approx(known.norm(dim=1).mean().item(), rel=0.5)
    history = ["i3", "i4", "i5"]
    own = policy.scores([np.array([later.item_ids.index(item) for item in history])])[0]
    his = champion.scores([np.array([theirs.index(item) for item in history])])[0]
    for item in ("i6", "i9"):
        assert own[later.item_ids.index(item)].item() == pytest.approx(his[theirs.index(item)].item(), abs=1e-5)


def test_a_champion_that_does_not_fit_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(project, PARAMS, policy="grpo")
    start, data = project / "models/champion", prepared(project, sequences(60))
    fetch_champion(PARAMS.tracking, start, held_out=True)
    larger = PARAMS.model_copy(update={"policy": PARAMS.policy.model_copy(update={"n_embd": 32})})
    with pytest.raises(UserError, match=r"another architecture .*: hidden_size 16 instead of 32\. Change `policy`"):
        start_from_champion(fresh_policy(data, larger), data.item_ids, start)
    with pytest.raises(UserError, match="knows none of the items"):
        start_from_champion(fresh_policy(data), [f"other-{n}" for n in range(data.num_items)], start)

    MlflowClient().set_model_version_tag(NAME, "1", FEEDBACK, "latest")
    with pytest.raises(UserError, match="version 1 of shop was trained on the validation targets"):
        fetch_champion(PARAMS.tracking, start, held_out=True)
    assert described(start)["init"] == "champion"  # left as it was
    fetch_champion(PARAMS.tracking, start, held_out=False)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"sft.init: champion: the MLflow registry: .* `sft.init: fresh`"):
        fetch_champion(PARAMS.tracking, start, held_out=True)


def test_a_promotion_notes_what_the_policy_was_trained_on(project: Path) -> None:
    latest = PARAMS.model_copy(update={"rl": PARAMS.rl.model_copy(update={"feedback": "latest"})})
    promote(project, latest)
    version = MlflowClient().get_model_version_by_alias(NAME, CHAMPION)
    assert version.tags[FEEDBACK] == "latest"


def test_a_champion_whose_run_is_gone_is_measured_by_its_model(project: Path) -> None:
    promote(project, PARAMS, policy="ppo")
    run = MlflowClient().get_model_version_by_alias(NAME, CHAMPION).run_id
    folder = Path(MlflowClient().get_run(run).info.artifact_uri.removeprefix("file://"))
    shutil.rmtree(folder)
    put(project, "grpo", 150)
    assert promote(project, PARAMS, policy="grpo").promoted
    version = MlflowClient().get_model_version_by_alias(NAME, CHAMPION)
    model = MlflowClient().get_logged_model(version.source.removeprefix("models:/"))
    shutil.rmtree(model.artifact_location.removeprefix("file://"))
    folder = Path(MlflowClient().get_run(version.run_id).info.artifact_uri.removeprefix("file://"))
    shutil.rmtree(folder)
    put(project, "ppo", 6)
    with pytest.raises(UserError, match=r"the champion, version 2, cannot be measured: .* `rl4rec rollback`"):
        promote(project, PARAMS, policy="ppo")
