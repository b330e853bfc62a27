"""Cross-fitting: what a table has seen, what stays as it was, and RL on prompts that were held out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData
from rl4rec.evaluation.validation import validate
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CrossfitParams, SFTParams
from rl4rec.train.crossfit import fit_crossfit, split_data
from rl4rec.train.log import RunLog
from tests.train.helpers import (
    Interrupted,
    make_trainer,
    measured,
    raises_interrupted,
    rl_params,
    same_weights,
    weights,
)

SFT = SFTParams(batch_size=16, num_epochs=2, learning_rate=2e-2, logging_steps=1, target_window=1, precision="fp32")
TWO = CrossfitParams(split_points=2)


class Fit:
    """A fit of the tables; `policies` and `seen` are those of each table, `rows` the log rows of both."""

    def __init__(self, start: SlatePolicy, data: PreparedData) -> None:
        self._start, self._data = start, data
        self.policies: dict[int, SlatePolicy] = {}
        self.seen: dict[int, PreparedData] = {}
        self.rows: list[dict[str, float]] = []

    def __call__(
        self,
        *,
        epochs: float = 2,
        points: int = 2,
        checkpoints: Path | None = None,
        interrupt_at: tuple[int, int] | None = None,
    ) -> CrossfitEmbeddings | None:
        def make_run(earlier: PreparedData, table: int) -> RunLog:
            self.seen[table] = earlier

            def check(policy: SlatePolicy) -> dict[str, float]:
                self.policies[table] = policy
                return validate(policy, earlier, k=3)

            def on_log(row: dict[str, float]) -> None:
                if (table, row["step"]) == interrupt_at and "train/loss" in row:
                    raise Interrupted
                self.rows.append({"table": table, **row})

            return RunLog(validate=check, metric="valid/full/ndcg@3", on_log=on_log, keep_last=True)

        return fit_crossfit(
            self._start, self._data, SFT, CrossfitParams(split_points=points, num_epochs=epochs),
            latest=False, make_run=make_run, checkpoints=checkpoints, digest="d",
        )  # fmt: skip


def tables_of(start: SlatePolicy, data: PreparedData) -> CrossfitEmbeddings:
    found = Fit(start, data)()
    assert found is not None
    return found


def test_each_table_is_fitted_without_the_items_of_its_split_point(tiny_data: PreparedData) -> None:
    first, second = split_data(tiny_data, TWO, latest=False)
    train = tiny_data.train_sequences()
    for row in range(len(train)):
        assert first.train_sequences()[row].tolist() == train[row][:-1].tolist()
        assert second.train_sequences()[row].tolist() == train[row][:-2].tolist()
    assert first.split("valid").targets.tolist() == [int(train[row][-1]) for row in range(len(train))]
    latest, _ = split_data(tiny_data, TWO, latest=True)
    assert latest.split("valid").targets.tolist() == tiny_data.split("valid").targets.tolist()


def test_items_are_learned_anew_under_an_unchanged_body(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    own = {name: weight.clone() for name, weight in weights(tiny_policy).items()}
    fit = Fit(tiny_policy, tiny_data)
    tables = fit(epochs=12)
    assert tables is not None and tables.tables == 2
    assert fit.seen.keys() == fit.policies.keys() == {0, 1}
    offset = tiny_policy.config.item_offset
    for table, fitted in fit.policies.items():
        kept = weights(fitted)
        for name in own:
            same = torch.equal(own[name], kept[name])
            assert same != ("wte" in name or "lm_head" in name), name
        assert torch.equal(kept["lm.transformer.wte.weight"][offset:], tables.inputs[table])
        assert torch.equal(tables.inputs[table], tables.outputs[table])  # they are tied
        fresh = validate(tiny_policy, fit.seen[table], k=3)["valid/full/ndcg@3"]
        assert validate(fitted, fit.seen[table], k=3)["valid/full/ndcg@3"] > fresh  # an untrained policy knew nothing
    assert not torch.equal(tables.inputs[0], tables.inputs[1])
    assert tables.item_offset == offset
    assert all(torch.equal(own[name], weight) for name, weight in weights(tiny_policy).items())
    assert Fit(tiny_policy, tiny_data)(points=0) is None


@pytest.mark.parametrize("tiny_policy", ["cosine"], indirect=True)
@pytest.mark.parametrize("interrupt_at", [(0, 6), (1, 6)])
def test_an_interrupted_fit_goes_on_in_the_table_where_it_was(
    interrupt_at: tuple[int, int], tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path
) -> None:
    whole, broken, resumed = (Fit(tiny_policy, tiny_data) for _ in range(3))
    expected = whole(epochs=8)
    assert raises_interrupted(lambda: broken(epochs=8, checkpoints=tmp_path, interrupt_at=(interrupt_at[0], 20)))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"table-{t}" for t in range(interrupt_at[0] + 1)]
    found = resumed(epochs=8, checkpoints=tmp_path)
    assert expected is not None and found is not None and found.digest() == expected.digest()
    assert measured(resumed.rows) == measured(whole.rows)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "sft_continued"])
def test_training_uses_the_tables_and_leaves_the_items_alone(
    algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    tables = tables_of(tiny_policy, tiny_data)
    rl = rl_params(crossfit=TWO, trainable="body")
    ends = []
    for crossfit in (tables, tables._replace(outputs=tables.outputs.flip(1))):
        trainer = make_trainer(algorithm, tiny_policy, tiny_data, rl, crossfit=crossfit)
        trainer.train()
        ends.append(weights(trainer.policy))
    own = weights(tiny_policy)
    assert torch.equal(ends[0]["lm.transformer.wte.weight"], own["lm.transformer.wte.weight"])
    assert not torch.equal(ends[0]["lm.transformer.ln_f.weight"], own["lm.transformer.ln_f.weight"])
    assert not torch.equal(ends[0]["lm.transformer.ln_f.weight"], ends[1]["lm.transformer.ln_f.weight"])


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_log_probs_of_slates_are_recomputed_from_every_table(
    algorithm: str, tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    tables = tables_of(tiny_policy, tiny_data)
    trainer = make_trainer(
        algorithm, tiny_policy, tiny_data, rl_params(crossfit=TWO, trainable="body"), crossfit=tables
    )
    if algorithm == "grpo":
        (part,), _ = trainer.rollout(0, with_reference=True)
        found, _, _ = trainer.loss(part, None)
        assert torch.allclose(found, part.reference, atol=1e-6)  # the reference reads them too
    else:
        part, stats = trainer.rollout(0, measure_kl=True)
        found = part.old_log_probs
        assert stats["kl"].item() == pytest.approx(0.0, abs=1e-6)
    policy, batch = trainer.policy, trainer.prompts.visit(0, len(part.prompts))
    offset, used = policy.config.item_offset, set()
    for row, table in enumerate(batch.tables.tolist()):
        used.add(table)
        other = SlatePolicy(policy.config)
        other.load_state_dict(policy.state_dict())
        other.train(False)
        with torch.no_grad():  # as if the table were the policy's own
            other.get_input_embeddings().weight[offset:] = tables.inputs[table]
        history = other.pad_histories([batch.histories[row]])
        target, seed = torch.tensor([int(batch.targets[row])]), torch.tensor([int(batch.seeds[row])])
        support = other.support(history, trainer.candidates.candidates(history, target, seed))
        expected, _ = other.log_probs(other.encode(history), support, part.slates[row].unsqueeze(0))
        assert torch.allclose(found[row], expected[0], atol=1e-4)
    assert used == {0, 1}


def test_the_control_learns_what_it_is_shown_and_resumes_exactly(
    tiny_policy: SlatePolicy, tiny_data: PreparedData, tmp_path: Path
) -> None:
    rl = rl_params(sft_continued={"learning_rate": 1e-2}, grpo={"batch_size": 64, "max_steps": 12})
    rows: list[dict[str, float]] = []
    whole = make_trainer("sft_continued", tiny_policy, tiny_data, rl, rows)
    whole.train()
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert np.mean(losses[-2:]) < 0.9 * losses[0]
    assert rows[-1]["steps"] == rl.grpo.max_steps
    assert rows[-1]["samples"] == 12 * 64
    broken = make_trainer("sft_continued", tiny_policy, tiny_data, rl, interrupt_at=6)
    assert raises_interrupted(lambda: broken.train(checkpoints=tmp_path, digest="d"))
    resumed = make_trainer("sft_continued", tiny_policy, tiny_data, rl)
    resumed.train(checkpoints=tmp_path, digest="d")
    assert same_weights(whole.policy, resumed.policy)


def test_the_control_makes_as_many_updates_as_grpo(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    grpo = {"batch_size": 4, "num_sample_generations": 2, "gradient_accumulation_steps": 2, "num_iterations": 3}
    rl = rl_params(grpo=grpo | {"max_steps": 2})
    counts, prompts = [], []
    for algorithm in ("grpo", "sft_continued"):
        trainer = make_trainer(algorithm, tiny_policy, tiny_data, rl)
        trainer.train()
        counts.append(trainer.optimizer.state[next(iter(trainer.policy.parameters()))]["step"].item())
        prompts.append(trainer.read_prompts(1))
    assert counts == [6, 6]
    assert torch.equal(prompts[0].targets, prompts[1].targets) and len(prompts[0]) == 8
