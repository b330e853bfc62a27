"""Cross-fitted item embeddings: reading and scoring through them, and their file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.errors import UserError
from rl4rec.model.batch import Histories
from rl4rec.model.crossfit_embeddings import FILE, CrossfitEmbeddings, load_crossfit
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.trainable import frozen_copy

HISTORIES = [np.array([1, 2, 3]), np.array([7]), np.array([5, 4]), np.array([9, 8, 7, 6, 5, 4])]
TABLES = torch.tensor([1, 0, 0, 1])


@pytest.fixture
def tables(tiny_policy: SlatePolicy) -> CrossfitEmbeddings:
    torch.manual_seed(1)
    rows = torch.randn(2, tiny_policy.num_items, 16)
    return CrossfitEmbeddings(rows, rows.clone(), tiny_policy.config.item_offset)


def with_items(policy: SlatePolicy, rows: torch.Tensor) -> SlatePolicy:
    """A copy of the policy whose own item embeddings (tied) are `rows`."""
    other = frozen_copy(policy)
    offset = policy.config.item_offset
    other.get_input_embeddings().weight[offset : offset + policy.num_items] = rows
    return other


def read(policy: SlatePolicy, tables: CrossfitEmbeddings) -> Histories:
    """The histories, each with its table."""
    plain = policy.pad_histories(HISTORIES)
    return Histories(plain.items, plain.lengths, TABLES, tables)


@pytest.mark.parametrize("listed", [True, False])
def test_a_row_is_read_and_scored_as_if_its_table_were_the_policys_own(
    tiny_policy: SlatePolicy, tables: CrossfitEmbeddings, listed: bool
) -> None:
    histories = read(tiny_policy, tables)
    candidates = torch.arange(3, 24).repeat(4, 1) if listed else None
    slates = torch.tensor([[10, 11, 12], [20, 21, 22], [23, 13, 14], [15, 16, 17]]).unsqueeze(1)
    support = tiny_policy.support(histories, candidates)
    states = tiny_policy.encode(histories)
    found, _ = tiny_policy.log_probs(states, support, slates)
    for row, table in enumerate(TABLES.tolist()):
        other = with_items(tiny_policy, tables.inputs[table])
        own = other.encode([HISTORIES[row]])
        one = other.support(own.histories, None if candidates is None else candidates[row : row + 1])
        expected, _ = other.log_probs(own, one, slates[row : row + 1])
        assert torch.allclose(states.vectors[row], own.vectors[0], atol=1e-5)
        assert torch.allclose(found[row], expected[0], atol=1e-4)
        scores = other.score_candidates(own, one)
        assert torch.allclose(tiny_policy.score_candidates(states, support)[row], scores[0], atol=1e-5)
    # and differs from what the policy's own embeddings say
    plain, _ = tiny_policy.log_probs(tiny_policy.encode(HISTORIES), support, slates)
    assert not torch.allclose(found, plain, atol=0.1)


def test_rows_take_their_tables_along(tiny_policy: SlatePolicy, tables: CrossfitEmbeddings) -> None:
    histories = read(tiny_policy, tables)
    support, states = tiny_policy.support(histories), tiny_policy.encode(histories)
    whole = tiny_policy.score_candidates(states, support)
    for rows in (torch.tensor([3, 1]), slice(1, 3), torch.tensor([2])):
        assert torch.allclose(tiny_policy.score_candidates(states[rows], support[rows]), whole[rows], atol=1e-5)
        again = tiny_policy.encode(histories[rows])
        assert torch.allclose(tiny_policy.score_candidates(again, support[rows]), whole[rows], atol=1e-5)


def test_gradients_reach_the_body_and_not_the_tables(tiny_policy: SlatePolicy, tables: CrossfitEmbeddings) -> None:
    tiny_policy.get_input_embeddings().requires_grad_(False)
    histories = read(tiny_policy, tables)
    slates = torch.tensor([[[10, 11]]] * 4)
    support, states = tiny_policy.support(histories), tiny_policy.encode(histories)
    tiny_policy.log_probs(states, support, slates).log_probs.sum().backward()
    assert tiny_policy.lm.transformer.ln_f.weight.grad.abs().sum() > 0
    assert tiny_policy.lm.transformer.wpe.weight.grad.abs().sum() > 0
    assert not tables.inputs.requires_grad


def test_the_files_way_there_and_back(tables: CrossfitEmbeddings, tmp_path: Path) -> None:
    tables.save(tmp_path)
    found = load_crossfit(tmp_path, tables=2)
    assert found is not None
    assert torch.equal(found.inputs, tables.inputs)
    assert torch.equal(found.outputs, tables.outputs)
    assert (found.item_offset, found.tables) == (tables.item_offset, 2)
    assert found.digest() == tables.digest() != tables._replace(inputs=tables.inputs + 1).digest()


def test_no_tables_need_no_file_and_a_wrong_number_is_refused(tables: CrossfitEmbeddings, tmp_path: Path) -> None:
    assert load_crossfit(tmp_path, tables=0) is None
    with pytest.raises(UserError, match=r"no such file. Run `dvc repro crossfit`"):
        load_crossfit(tmp_path, tables=2)
    tables.save(tmp_path)
    with pytest.raises(UserError, match=r"holds 2 tables, but rl.crossfit.split_points is 3"):
        load_crossfit(tmp_path, tables=3)
    (tmp_path / FILE).write_bytes(b"not a tensor")
    with pytest.raises(UserError, match=r"cannot be read .*dvc repro crossfit"):
        load_crossfit(tmp_path, tables=2)
