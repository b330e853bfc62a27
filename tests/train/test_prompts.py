"""Training prompts: which there are, and in which order they are visited."""

import numpy as np
import pytest
import torch

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import CandidateParams
from rl4rec.train.candidates import CandidateRule
from rl4rec.train.log import RunLog
from rl4rec.train.prompts import PromptSet, check_slate_fits


def small(rows: list[list[int]], tiny_data: PreparedData) -> PreparedData:
    from dataclasses import replace

    return replace(tiny_data, sequences=Ragged.from_rows(rows))


def test_every_prefix_of_the_training_part_is_a_prompt(tiny_data: PreparedData) -> None:
    # the last two items of each user are validation and test
    data = small([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10]], tiny_data)
    prompts = PromptSet(data, max_history=2, seed=0)
    assert len(prompts) == 4
    batch = prompts.visit(0, 4)
    pairs = {(tuple(h.tolist()), t) for h, t in zip(batch.histories, batch.targets.tolist(), strict=True)}
    assert pairs == {((1,), 2), ((1, 2), 3), ((2, 3), 4), ((7,), 8)}


def test_every_epoch_visits_each_prompt_once_in_a_new_order(tiny_data: PreparedData) -> None:
    prompts = PromptSet(tiny_data, max_history=8, seed=3)
    n = len(prompts)
    key = [tuple(h.tolist()) for h in prompts.visit(0, 2 * n).histories]
    first, second = key[:n], key[n:]
    assert sorted(first) == sorted(second) and first != second


def test_visits_are_a_function_of_seed_and_number(tiny_data: PreparedData) -> None:
    prompts = PromptSet(tiny_data, max_history=8, seed=3)
    n = len(prompts)
    whole = prompts.visit(0, n + 20)
    part = PromptSet(tiny_data, max_history=8, seed=3).visit(n - 5, 25)  # across the end of an epoch
    assert np.array_equal(whole.targets[n - 5 :], part.targets)
    assert np.array_equal(whole.seeds[n - 5 :], part.seeds)
    other = PromptSet(tiny_data, max_history=8, seed=4).visit(0, n)
    assert not np.array_equal(whole.targets[:n], other.targets)
    assert len(np.unique(whole.seeds)) == len(whole.seeds)
    assert (whole.seeds >= 0).all() and (whole.seeds < 2**31).all()


def test_processes_share_the_prompts_in_turns(tiny_data: PreparedData) -> None:
    batch = PromptSet(tiny_data, max_history=8, seed=3).visit(5, 7)
    first, second = batch.share(0, 2), batch.share(1, 2)
    assert first.targets.tolist() == batch.targets[[0, 2, 4, 6]].tolist()
    assert second.targets.tolist() == batch.targets[[1, 3, 5]].tolist()
    assert second.seeds.tolist() == batch.seeds[[1, 3, 5]].tolist()
    assert [h.tolist() for h in second.histories] == [batch.histories[row].tolist() for row in (1, 3, 5)]
    assert batch.tables is first.tables is None
    held_out = PromptSet(tiny_data, max_history=8, seed=3, split_points=2).visit(5, 7)
    assert held_out.tables is not None and set(held_out.tables.tolist()) == {0, 1}
    assert held_out.share(1, 2).tables.tolist() == held_out.tables[[1, 3, 5]].tolist()


def test_a_catalogue_too_small_for_the_slate_is_a_users_error(tiny_data: PreparedData) -> None:
    # 24 items; training parts of at most 6 items, so prompts of at most 5
    check_slate_fits(tiny_data, k=19, max_history=8, mask_seen=True)
    with pytest.raises(UserError, match=r"rl.k: a slate of 20 .* has 24 items, and a history of 5 distinct "):
        check_slate_fits(tiny_data, k=20, max_history=8, mask_seen=True)
    check_slate_fits(tiny_data, k=20, max_history=4, mask_seen=True)
    check_slate_fits(tiny_data, k=24, max_history=8, mask_seen=False)


def test_targets_that_the_policy_may_not_propose_are_no_prompts(tiny_data: PreparedData) -> None:
    data = small([[1, 2, 1, 3, 1, 8, 9], [4, 4, 8, 9]], tiny_data)  # training parts 1 2 1 3 1 and 4 4
    batch = PromptSet(data, max_history=8, seed=0).visit(0, 2)
    pairs = {(tuple(h.tolist()), t) for h, t in zip(batch.histories, batch.targets.tolist(), strict=True)}
    assert pairs == {((1,), 2), ((1, 2, 1), 3)}
    # a history of one item has forgotten the first 1, but not the first 4
    assert len(PromptSet(data, max_history=1, seed=0)) == 4
    assert len(PromptSet(data, max_history=8, seed=0, mask_seen=False)) == 5


def test_data_without_any_prompt_is_a_users_error(tiny_data: PreparedData) -> None:
    with pytest.raises(UserError, match="nobody has two training items"):
        PromptSet(small([[1, 2, 3]], tiny_data), max_history=8, seed=0)


def test_split_points_ask_for_held_out_targets_with_the_table_that_has_not_seen_them(tiny_data: PreparedData) -> None:
    rows = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10], [11, 12, 13], [14, 15], [1, 2, 1, 3, 4]]
    data = small(rows, tiny_data)
    prompts = PromptSet(data, max_history=8, seed=0, split_points=2)
    batch = prompts.visit(0, len(prompts))
    found = {
        (int(table), tuple(history.tolist()), int(target))
        for table, history, target in zip(batch.tables, batch.histories, batch.targets, strict=True)
    }
    expected = set()
    for table in range(2):
        fold = data.hold_out(table).split("valid")
        expected |= {
            (table, tuple(fold.history[row].tolist()), int(fold.targets[row]))
            for row in range(len(fold.targets))
            if len(fold.history[row]) and fold.targets[row] not in fold.history[row]
        }
    assert found == expected == {(0, (1, 2, 3), 4), (1, (1, 2), 3), (0, (7,), 8), (1, (1,), 2), (0, (14,), 15)}
    latest = PromptSet(data, max_history=8, seed=0, split_points=1, latest=True)
    assert sorted(latest.visit(0, len(latest)).targets.tolist()) == [3, 5, 9, 12, 15]
    assert ((batch.seeds >= 0) & (batch.seeds < 2**31)).all()
    assert len(set(batch.seeds.tolist())) == len(batch.seeds)


def test_the_latest_feedback_adds_the_validation_targets(tiny_data: PreparedData) -> None:
    data = small([[1, 2, 3, 4], [5, 6]], tiny_data)
    assert [data.train_sequences(latest=True)[row].tolist() for row in range(2)] == [[1, 2, 3], [5, 6]]
    prompts = PromptSet(data, max_history=8, seed=0, latest=True)
    assert sorted(prompts.visit(0, len(prompts)).targets.tolist()) == [2, 3, 6]


def test_prompts_become_tensors_with_their_candidates_and_tables(
    tiny_policy: SlatePolicy, tiny_data: PreparedData
) -> None:
    rows = torch.zeros(2, 24, 16)
    crossfit = CrossfitEmbeddings(rows, rows, 4)
    rule = CandidateRule(CandidateParams(negatives=3), torch.from_numpy(tiny_data.item_counts), exclude_seen=True)
    batch = PromptSet(tiny_data, max_history=8, seed=0, split_points=2).visit(0, 6)
    prompts = batch.to_tensors(tiny_policy, crossfit, rule)
    assert len(prompts) == 6 and prompts.candidates is not None and prompts.candidates.shape == (6, 4)
    for row in range(6):
        items = prompts.histories.items[row, : prompts.histories.lengths[row]].tolist()
        assert items == batch.histories[row].tolist()
        assert int(prompts.targets[row]) == batch.targets[row]
        assert batch.targets[row] in prompts.candidates[row]
        assert not set(items) & set(prompts.candidates[row].tolist())
    assert prompts.histories.tables is not None and batch.tables is not None
    assert prompts.histories.tables.tolist() == batch.tables.tolist()
    assert prompts.histories.crossfit is crossfit
    some = prompts[torch.tensor([4, 1])]
    assert some.targets.tolist() == batch.targets[[4, 1]].tolist()
    assert some.keys.tolist() == prompts.keys[[4, 1]].tolist() and len(prompts.keys.unique()) == 6
    assert some.candidates is not None and torch.equal(some.candidates, prompts.candidates[[4, 1]])
    assert some.histories.tables is not None and some.histories.tables.tolist() == batch.tables[[4, 1]].tolist()
    full = CandidateRule(CandidateParams(source="full"), torch.from_numpy(tiny_data.item_counts), exclude_seen=True)
    plain = PromptSet(tiny_data, max_history=8, seed=0).visit(0, 6).to_tensors(tiny_policy, None, full)
    assert plain.candidates is None and plain.histories.tables is None and plain[:2].candidates is None


def test_fitting_embeddings_says_what_the_data_lack(tiny_policy: SlatePolicy, tiny_data: PreparedData) -> None:
    from rl4rec.params import CrossfitParams, SFTParams
    from rl4rec.train.crossfit import fit_crossfit

    data = small([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]], tiny_data)  # three training items each
    with pytest.raises(UserError, match=r"table 2 of 2 is fitted without the last 2 training items .* Lower split_poi"):
        fit_crossfit(
            tiny_policy,
            data,
            SFTParams(batch_size=4),
            CrossfitParams(num_epochs=1),
            latest=False,
            make_run=lambda *_: RunLog(validate=None, metric=""),
        )
