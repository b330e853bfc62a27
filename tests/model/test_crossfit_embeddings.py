"""Leave-out item embeddings: reading and scoring through them, and their file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rl4rec.errors import UserError
from rl4rec.model.crossfit_embeddings import FILE, LeaveOutEmbeddings, load_leave_out
from rl4rec.model.policy import SlatePolicy
from rl4rec.train.trainable import frozen_copy

HISTORIES = [np.array([1, 2, 3]), np.array([7]), np.array([5, 4]), np.array([9, 8, 7, 6, 5, 4])]
TABLES = torch.tensor([1, 0, 0, 1])


@pytest.fixture
def tables(tiny_policy: SlatePolicy) -> LeaveOutEmbeddings:
    torch.manual_seed(1)
    rows = torch.randn(2, tiny_policy.num_items, 16)
    return LeaveOutEmbeddings(rows, rows.clone(), tiny_policy.config.item_offset)


def with_items(policy: SlatePolicy, rows: torch.Tensor) -> SlatePolicy:
    """A copy of the policy whose own item embeddings (tied) are `rows`."""
    other = frozen_copy(policy)
    offset = policy.config.item_offset
    other.get_input_embeddings().weight[offset : offset + policy.num_items] = rows
    return other


@pytest.mark.parametrize("listed", [True, False])
def test_a_row_is_read_and_scored_as_if_its_table_were_the_policys_own(
    tiny_policy: SlatePolicy, tables: LeaveOutEmbeddings, listed: bool
) -> None:
    tiny_policy.leave_out = tables
    histories = tiny_policy.pad_histories(HISTORIES)._replace(tables=TABLES)
    candidates = torch.arange(3, 24).repeat(4, 1) if listed else None
    slates = torch.tensor([[10, 11, 12], [20, 21, 22], [23, 13, 14], [15, 16, 17]]).unsqueeze(1)
    found = tiny_policy(histories=histories, candidates=candidates, slates=slates, targets=slates[:, 0, 0])
    for row, table in enumerate(TABLES.tolist()):
        other = with_items(tiny_policy, tables.inputs[table])
        one = other.pad_histories([HISTORIES[row]])
        own = None if candidates is None else candidates[row : row + 1]
        expected = other(histories=one, candidates=own, slates=slates[row : row + 1])
        assert torch.allclose(found.states[row], expected.states[0], atol=1e-5)
        assert torch.allclose(found.log_probs[row], expected.log_probs[0], atol=1e-4)
    # and differs from what the policy's own embeddings say
    plain = tiny_policy(histories=histories._replace(tables=None), candidates=candidates, slates=slates)
    assert not torch.allclose(found.log_probs, plain.log_probs, atol=0.1)


def test_gradients_reach_the_body_and_not_the_tables(tiny_policy: SlatePolicy, tables: LeaveOutEmbeddings) -> None:
    tiny_policy.leave_out = tables
    tiny_policy.get_input_embeddings().requires_grad_(False)
    histories = tiny_policy.pad_histories(HISTORIES)._replace(tables=TABLES)
    tiny_policy(histories=histories, slates=torch.tensor([[[10, 11]]] * 4)).log_probs.sum().backward()
    assert tiny_policy.lm.transformer.ln_f.weight.grad.abs().sum() > 0
    assert tiny_policy.lm.transformer.wpe.weight.grad.abs().sum() > 0
    assert not tables.inputs.requires_grad


def test_the_files_way_there_and_back(tables: LeaveOutEmbeddings, tmp_path: Path) -> None:
    tables.save(tmp_path)
    found = load_leave_out(tmp_path, tables=2)
    assert found is not None
    assert torch.equal(found.inputs, tables.inputs)
    assert torch.equal(found.outputs, tables.outputs)
    assert (found.item_offset, found.tables) == (tables.item_offset, 2)
    assert found.of_seeds(torch.tensor([6, 7])).tolist() == [0, 1]


def test_no_tables_need_no_file_and_a_wrong_number_is_refused(tables: LeaveOutEmbeddings, tmp_path: Path) -> None:
    assert load_leave_out(tmp_path, tables=0) is None
    with pytest.raises(UserError, match=r"no such file. Run `dvc repro crossfit`"):
        load_leave_out(tmp_path, tables=2)
    tables.save(tmp_path)
    with pytest.raises(UserError, match=r"holds 2 tables, but rl.crossfit.split_points is 3"):
        load_leave_out(tmp_path, tables=3)
    (tmp_path / FILE).write_bytes(b"not a tensor")
    with pytest.raises(UserError, match=r"cannot be read .*dvc repro crossfit"):
        load_leave_out(tmp_path, tables=2)
