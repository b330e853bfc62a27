"""A whole small workspace: settings, store, prepared data, a policy, evaluations and logs, all made for real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import torch
import yaml

from rl4rec._io import write_json
from rl4rec.data.prepare import prepare
from rl4rec.data.vocabulary import build_tokenizer
from rl4rec.evaluation.files import save_evaluation
from rl4rec.evaluation.protocols import evaluate
from rl4rec.model.create import create_policy
from rl4rec.model.load import save_policy
from rl4rec.model.ranking import PopularityPolicy
from rl4rec.params import Params
from rl4rec.report import compare_policies

NUM_ITEMS = 24
SETTINGS = {
    "data": {"source": "interactions", "path": "store", "k_core": 1},
    "policy": {"n_layer": 1, "n_embd": 16, "n_head": 1, "dropout": 0.0, "max_history": 8},
    "rl": {"k": 3, "candidates": {"negatives": 8}},
    "evaluate": {"ks": [3, 5], "negatives": 10},
    "compare": {"bootstrap_samples": 100, "gate": {"metric": "test/full/ndcg@5", "guards": {}}},
    "tracking": {"enabled": False},
}
POLICIES = ("popularity", "sft", "sft_continued", "ppo", "grpo")


def make_workspace(folder: Path) -> Path:
    """Fill an empty folder."""
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    rows = [
        (f"u{user}", f"i{(3 * user + step) % NUM_ITEMS}", step) for user in range(40) for step in range(6 + user % 3)
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    (folder / "store").mkdir()
    table.write_parquet(folder / "store" / "part-00000-start.parquet")
    table.head(3).with_columns(timestamp=pl.lit(99)).write_csv(folder / "new.csv")
    params = Params.model_validate(SETTINGS)
    store = params.data.model_copy(update={"path": str(folder / "store")})
    (folder / "data").mkdir()
    data = prepare(store, folder / "data" / "prepared")
    (folder / "data" / "raw.json").write_text('{"source": "interactions", "files": []}\n')
    torch.manual_seed(0)
    policy, tokenizer = create_policy(params.policy, data.item_ids, build_tokenizer(data.item_ids))
    save_policy(policy, folder / "models" / "sft")
    tokenizer.save_pretrained(folder / "models" / "sft")
    (folder / "logs").mkdir()
    found = evaluate("popularity", PopularityPolicy(data.item_counts), data, params.evaluate)
    for name in POLICIES:
        tables = (folder / kind / f"{name}.parquet" for kind in ("ranks", "slates"))
        save_evaluation(replace(found, policy=name), folder / "metrics" / f"{name}.json", *tables)
        log = [{"step": step, "samples": 8 * step, "seconds": step, "train/reward": 0.1} for step in range(6)]
        (folder / "logs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    comparison = compare_policies(dict.fromkeys(POLICIES, found), params.compare, k=params.rl.k)
    write_json(folder / "metrics" / "comparison.json", comparison)
    (folder / "users.jsonl").write_text('{"user": 7, "history": ["i1", "i2"]}\n')
    pl.DataFrame({"items": [["i1", "i2", "i3"]]}).write_parquet(folder / "served.parquet")
    return folder
