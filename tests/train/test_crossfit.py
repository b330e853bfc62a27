"""Cross-fitting: what a table has seen, what stays as it was, and RL on prompts that were held out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.validation import validate
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CrossfitParams, SFTParams
from rl4rec.train.continued import ContinuedSFTTrainer
from rl4rec.train.crossfit import fit_leave_out, split_data
from rl4rec.train.grpo import build_grpo, train_grpo
from rl4rec.train.monitor import Monitor
from rl4rec.train.ppo import PPOTrainer
from rl4rec.train.prompts import PromptBatch, PromptSet
from rl4rec.train.seeding import seed_everything
from rl4rec.train.token_prompts import prompt_texts
from tests.train.helpers import make_monitor, raises_interrupted, rl_params, same_weights, weights

SFT = SFTParams(batch_size=16, num_epochs=2, learning_rate=2e-2, logging_steps=1, target_window=1, precision="fp32")


@pytest.fixture
def sft_folder(tiny_policy: SlatePolicy, tmp_path: Path) -> Path:
    tiny_policy.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def fit(
    sft: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    folder: Path,
    *,
    epochs: float = 2,
    points: int = 2,
) -> tuple[LeaveOutEmbeddings | None, list[PreparedData]]:
    """The tables, and the data that each was validated on."""
    seen: list[PreparedData] = []

    def make_monitor(earlier: PreparedData, table: int, best: Path) -> Monitor:
        seen.append(earlier)
        return Monitor(
            validate=lambda policy: validate(policy.factors, earlier, k=3),
            metric="full/ndcg@3",
            report=lambda row: None,
            best_folder=best,
        )

    crossfit = CrossfitParams(split_points=points, num_epochs=epochs)
    tables = fit_leave_out(
        sft, tokenizer, data, SFT, crossfit,
        latest=False, make_monitor=make_monitor, checkpoints=folder, digest="d",
    )  # fmt: skip
    return tables, seen


def test_each_table_is_fitted_without_the_items_of_its_split_point(tiny_data: PreparedData) -> None:
    first, second = split_data(tiny_data, CrossfitParams(split_points=2), latest=False)
    train = tiny_data.train_sequences()
    for row in range(len(train)):
        assert first.train_sequences()[row].tolist() == train[row][:-1].tolist()
        assert second.train_sequences()[row].tolist() == train[row][:-2].tolist()
    assert first.split("valid").targets.tolist() == [int(train[row][-1]) for row in range(len(train))]
    latest, _ = split_data(tiny_data, CrossfitParams(split_points=2), latest=True)
    assert latest.split("valid").targets.tolist() == tiny_data.split("valid").targets.tolist()


def test_items_are_learned_anew_under_an_unchanged_body(
    sft_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_data: PreparedData, tmp_path: Path
) -> None:
    tables, seen = fit(sft_folder, tiny_tokenizer, tiny_data, tmp_path / "ck", epochs=12)
    assert tables is not None and tables.tables == 2
    policy = SlatePolicy.from_pretrained(sft_folder)
    own = weights(sft_folder)
    for table in range(2):
        kept = weights(tmp_path / "ck" / f"table-{table}" / "best")
        for name in own:
            same = torch.equal(own[name], kept[name])
            assert same != ("wte" in name or "lm_head" in name), name
        offset = policy.config.item_offset
        assert torch.equal(kept["lm.transformer.wte.weight"][offset:], tables.inputs[table])
        fresh = validate(policy.factors, seen[table], k=3)["full/ndcg@3"]
        fitted = SlatePolicy.from_pretrained(tmp_path / "ck" / f"table-{table}" / "best")
        assert validate(fitted.factors, seen[table], k=3)["full/ndcg@3"] > fresh  # an untrained policy knew nothing
    assert not torch.equal(tables.inputs[0], tables.inputs[1])
    assert fit(sft_folder, tiny_tokenizer, tiny_data, tmp_path / "none", points=0)[0] is None


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
def test_training_uses_the_tables_and_leaves_the_items_alone(
    algorithm: str, sft_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_data: PreparedData, tmp_path: Path
) -> None:
    tables, _ = fit(sft_folder, tiny_tokenizer, tiny_data, tmp_path / "ck")
    rl = rl_params(crossfit=CrossfitParams(split_points=2), trainable="body")
    ends = []
    for leave_out in (tables, tables and tables._replace(outputs=tables.outputs.flip(1))):
        seed_everything(0)
        folder = tmp_path / f"run-{len(ends)}"
        monitor = make_monitor(tiny_data, folder / "best", [])
        if algorithm == "grpo":
            train_grpo(
                sft_folder, tiny_tokenizer, tiny_data, rl, monitor,
                checkpoints=folder / "ck", digest="d", leave_out=leave_out,
            )  # fmt: skip
        else:
            trainer = PPOTrainer if algorithm == "ppo" else ContinuedSFTTrainer
            policy = SlatePolicy.from_pretrained(sft_folder)
            trainer(policy, tiny_data, rl, monitor, folder / "ck", leave_out=leave_out).train(digest="d")
        ends.append(weights(folder / "best"))
    own = weights(sft_folder)
    assert torch.equal(ends[0]["lm.transformer.wte.weight"], own["lm.transformer.wte.weight"])
    assert not torch.equal(ends[0]["lm.transformer.ln_f.weight"], own["lm.transformer.ln_f.weight"])
    assert not torch.equal(ends[0]["lm.transformer.ln_f.weight"], ends[1]["lm.transformer.ln_f.weight"])


def test_grpo_recomputes_the_log_probs_of_slates_from_every_table(
    sft_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_data: PreparedData, tmp_path: Path
) -> None:
    tables, _ = fit(sft_folder, tiny_tokenizer, tiny_data, tmp_path / "ck")
    rl = rl_params(crossfit=CrossfitParams(split_points=2), trainable="body")
    monitor = make_monitor(tiny_data, tmp_path / "best", [])
    seed_everything(0)
    trainer = build_grpo(
        sft_folder, tiny_tokenizer, tiny_data, rl, monitor, checkpoints=tmp_path / "rl", leave_out=tables
    )
    policy = trainer.model
    assert policy.leave_out is not None
    rows = [trainer.train_dataset[i // 4] for i in range(16)]
    policy.train()
    batch = trainer._generate_and_score_completions(rows)
    tokens = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    found, _, _ = trainer._get_per_token_logps_and_entropies(policy, tokens, mask, 3)
    slates = batch["completion_ids"] - policy.config.item_offset
    used = set()
    prompts = trainer_prompts(tiny_data)
    for row in range(16):
        seed = torch.tensor([int(prompts.seeds[row // 4])])
        table = policy.leave_out.of_seeds(seed)
        used.add(int(table))
        history = policy.pad_histories([prompts.histories[row // 4]])._replace(tables=table)
        target = torch.tensor([int(prompts.targets[row // 4])])
        support = policy.support(history, policy.rule.candidates(history, target, seed))
        expected = policy.log_probs(history, support, slates[row].view(1, 1, 3)).log_probs[0, 0]
        assert torch.allclose(found[row], expected, atol=1e-5)
    assert used == {0, 1}
    assert prompt_texts(prompts, tiny_tokenizer, policy)[0] == rows[0]["prompt"]


def trainer_prompts(data: PreparedData) -> PromptBatch:
    return PromptSet(data, max_history=8, seed=0, split_points=2).visit(0, 4)


def test_the_control_learns_what_it_is_shown_and_resumes_exactly(
    sft_folder: Path, tiny_data: PreparedData, tmp_path: Path
) -> None:
    rl = rl_params(sft_continued={"learning_rate": 1e-2})
    rows: list[dict[str, float]] = []

    def trainer(folder: Path, interrupt_at: int | None = None) -> ContinuedSFTTrainer:
        seed_everything(0)
        monitor = make_monitor(tiny_data, folder / "best", rows, interrupt_at=interrupt_at)
        return ContinuedSFTTrainer(SlatePolicy.from_pretrained(sft_folder), tiny_data, rl, monitor, folder / "ck")

    trainer(tmp_path / "whole").train(digest="d")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert np.mean(losses[-2:]) < losses[0]
    assert rows[-1]["steps"] == rl.grpo.max_steps
    assert raises_interrupted(lambda: trainer(tmp_path / "cut", interrupt_at=6).train(digest="d"))
    trainer(tmp_path / "cut").train(digest="d")
    assert same_weights(tmp_path / "whole/best", tmp_path / "cut/best")
