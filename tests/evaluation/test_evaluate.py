"""Ranks and metrics against a brute-force reading of the protocols, and against numbers worked by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl4rec.data.dataset import PreparedData, Ragged
from rl4rec.data.splits import Cuts
from rl4rec.errors import UserError
from rl4rec.evaluation.negatives import sample_negatives
from rl4rec.evaluation.protocols import evaluate, evaluate_oracle
from rl4rec.evaluation.validation import validate
from rl4rec.model import scores as scoring
from rl4rec.model.ranking import PopularityPolicy
from rl4rec.model.scores import Scores
from rl4rec.params import EvaluateParams
from tests.evaluation.doubles import Scored


def prepared(sequences: list[list[int]], num_items: int, folder: Path = Path("data/prepared")) -> PreparedData:
    counts = np.bincount([item for row in sequences for item in row[:-2]], minlength=num_items)
    return PreparedData(
        folder=folder,
        users=[f"u{row}" for row in range(len(sequences))],
        item_ids=[f"i{item}" for item in range(num_items)],
        item_counts=counts.astype(np.int64),
        sequences=Ragged.from_rows(sequences),
        stats={"data_hash": "abc", "source": "simulated"},
    )


def table_scorer(weights: np.ndarray):
    """A scorer that depends on the last item and the length of the history, with many ties."""

    def score(histories):
        return torch.stack([torch.from_numpy(np.roll(weights[row[-1]], len(row))) for row in histories])

    return score


def brute_rank(scores: np.ndarray, target: int, candidates: list[int]) -> int:
    return sum(1 for item in candidates if item != target and scores[item] >= scores[target])


HAND = prepared([[0, 1, 2, 3], [3, 2, 1, 0], [4, 0, 5, 1]], num_items=6)
HAND_PARAMS = EvaluateParams(ks=(1, 2), negatives=2, seed=1)


def hand_scorer(histories):
    return torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]]).repeat(len(histories), 1)


def test_full_ranking_worked_by_hand() -> None:
    # Items score 5..0, so an item's unmasked rank is its index.
    # test: targets 3, 0, 1; histories {0,1,2}, {3,2,1}, {4,0,5} -> masked ranks 0, 0, 0 and unmasked 3, 0, 1.
    # valid: targets 2, 1, 5; histories {0,1}, {3,2}, {4,0} -> masked ranks 0, 1 (behind 0), 3 (behind 1,2,3).
    result = evaluate("hand", Scored(hand_scorer), HAND, HAND_PARAMS)
    assert result.ranks["test/full"].to_list() == [0, 0, 0]
    assert result.ranks["test/full_unmasked"].to_list() == [3, 0, 1]
    assert result.ranks["valid/full"].to_list() == [0, 1, 3]
    assert result.ranks["user_row"].to_list() == [0, 1, 2]
    found = result.metrics
    assert found["valid/full/ndcg@1"] == pytest.approx(1 / 3, abs=1e-8)
    assert found["valid/full/ndcg@2"] == pytest.approx((1 + 1 / math.log2(3)) / 3, abs=1e-8)
    assert found["valid/full/hit@2"] == pytest.approx(2 / 3, abs=1e-8)
    assert found["valid/full/mrr@2"] == pytest.approx(0.5, abs=1e-8)
    assert result.metrics["test/full_unmasked/ndcg@2"] == pytest.approx((1 + 1 / math.log2(3)) / 3, abs=1e-8)


def test_slates_are_the_top_of_the_masked_test_ranking() -> None:
    # Items score 5..0; test histories {0,1,2}, {3,2,1}, {4,0,5}: the first two unseen ones each.
    slates = evaluate("hand", Scored(hand_scorer), HAND, HAND_PARAMS).slates
    assert slates is not None
    assert slates.schema == {"user_row": pl.Int32, "items": pl.List(pl.Int32)}
    assert slates["user_row"].to_list() == [0, 1, 2]
    assert slates["items"].to_list() == [[3, 4], [0, 4], [1, 2]]


def test_slates_hold_no_more_than_ten_and_nothing_that_is_never_shown() -> None:
    # 14 items, k up to 12: user 0 has seen 3 (11 unseen, of which 10 are kept), user 1 nine of them (5 left).
    data = prepared([[0, 1, 2, 3], [*range(9), 9]], num_items=14)
    params = EvaluateParams(ks=(1, 12), negatives=11)
    slates = evaluate("x", Scored(lambda h: torch.arange(14.0, 0, -1).repeat(len(h), 1)), data, params).slates
    assert slates is not None
    assert slates["items"].to_list() == [[*range(3, 13)], [9, 10, 11, 12, 13]]


def test_coverage_and_popularity_worked_by_hand() -> None:
    # Training parts 0 1 | 3 2 | 4 0: counts 2 1 1 1 1 0, percentiles 11/12, then 3/6 four times, then 1/12.
    # Masked top-2 on valid: user 0 has {0,1} -> 2,3; user 1 {3,2} -> 0,1; user 2 {4,0} -> 1,2. Shown 0 1 1 2 2 3.
    found = evaluate("hand", Scored(hand_scorer), HAND, HAND_PARAMS).metrics
    assert found["valid/full/coverage@2"] == pytest.approx(4 / 6, abs=1e-8)
    assert found["valid/full/popularity@2"] == pytest.approx(7 / 6, abs=1e-8)
    assert found["valid/full/popularity_percentile@2"] == pytest.approx((11 / 12 + 5 * 0.5) / 6, abs=1e-8)
    assert found["valid/full/coverage@1"] == pytest.approx(3 / 6, abs=1e-8)  # 2, 0, 1


sequence_sets = st.integers(8, 14).flatmap(
    lambda items: st.tuples(
        st.just(items),
        st.lists(st.lists(st.integers(0, items - 1), min_size=1, max_size=6), min_size=1, max_size=12),
        st.integers(0, 1000),
    )
)


@settings(max_examples=60, deadline=None)
@given(sequence_sets, st.integers(1, 5))
def test_ranks_equal_brute_force(drawn: tuple[int, list[list[int]], int], batch_size: int) -> None:
    num_items, sequences, seed = drawn
    sequences = [*sequences, [0, 1, 2]]
    weights = np.random.default_rng(seed).integers(0, 4, (num_items, num_items)).astype(np.float32)
    data, scorer = prepared(sequences, num_items), table_scorer(weights)
    params = EvaluateParams(ks=(1, 3), negatives=4, seed=seed, batch_size=batch_size)
    result = evaluate("x", Scored(scorer), data, params)
    rows = [row for row, sequence in enumerate(sequences) if len(sequence) >= 3]
    assert result.ranks["user_row"].to_list() == rows
    for place, row in enumerate(rows):
        for fold, back in (("valid", 2), ("test", 1)):
            history, target = sequences[row][:-back], sequences[row][-back]
            scores = scorer([np.array(history)])[0].numpy()
            unseen = [item for item in range(num_items) if item not in history]
            masked = brute_rank(scores, target, unseen) if target not in history else num_items - 1
            assert result.ranks[f"{fold}/full"][place] == masked
            assert result.ranks[f"{fold}/full_unmasked"][place] == brute_rank(scores, target, list(range(num_items)))
    again = evaluate("x", Scored(scorer), data, params.model_copy(update={"batch_size": 512}))
    assert again.ranks.equals(result.ranks)
    assert again.metrics == result.metrics


@pytest.mark.parametrize("batch_size", [7, 512])
def test_factors_are_ranked_like_their_product(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_CPU_BYTES", 16 * 30 * 4)  # several blocks
    rng = np.random.default_rng(4)
    data = prepared([rng.integers(0, 30, rng.integers(3, 9)).tolist() for _ in range(90)], 30)
    states, items = torch.from_numpy(rng.integers(-3, 4, (2, 30, 4))).float()  # small integers: exact, with ties
    params = EvaluateParams(ks=(1, 3), negatives=5, batch_size=batch_size)

    def rows(histories):
        return states[[int(history[-1]) for history in histories]]

    factored = evaluate("x", Scored(lambda histories: Scores(rows(histories), items)), data, params)
    whole = evaluate("x", Scored(lambda histories: rows(histories) @ items.T), data, params)
    assert factored.ranks.equals(whole.ranks)
    assert factored.metrics["valid/full/ndcg@3"] == whole.metrics["valid/full/ndcg@3"]
    quick = validate(Scored(lambda histories: Scores(rows(histories), items)), data, k=3, batch_size=batch_size)
    assert quick["valid/full/ndcg@3"] == pytest.approx(whole.metrics["valid/full/ndcg@3"], abs=1e-8)


def test_factors_that_are_not_finite_are_refused() -> None:
    def diverged(histories):
        return Scores(torch.full((len(histories), 2), torch.nan), torch.ones(6, 2))

    with pytest.raises(UserError, match="training diverged"):
        validate(Scored(diverged), HAND)


def test_sampled_ranks_equal_brute_force_over_the_stored_negatives() -> None:
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, 30, rng.integers(3, 9)).tolist() for _ in range(40)]
    data = prepared(sequences, 30)
    scorer = table_scorer(rng.integers(0, 5, (30, 30)).astype(np.float32))
    result = evaluate("x", Scored(scorer), data, EvaluateParams(ks=(5,), negatives=10, seed=8, batch_size=7))
    drawn = sample_negatives(data.sequences, num_items=30, n=10, seed=8).items
    for row, sequence in enumerate(sequences):
        scores = scorer([np.array(sequence[:-1])])[0].numpy()
        assert result.ranks["test/sampled10"][row] == brute_rank(scores, sequence[-1], drawn[row].tolist())


def test_equal_scores_count_against_the_target() -> None:
    result = evaluate("flat", Scored(lambda h: torch.zeros(len(h), 6)), HAND, HAND_PARAMS)
    assert result.ranks["valid/full_unmasked"].to_list() == [5, 5, 5]
    assert result.ranks["valid/full"].to_list() == [3, 3, 3]  # 4 unseen items, all before the target
    assert result.ranks["valid/sampled2"].to_list() == [2, 2, 2]


def test_a_target_seen_before_is_unreachable_when_masked_and_is_counted() -> None:
    data = prepared([[0, 1, 2, 0]], num_items=6)
    result = evaluate("repeat", Scored(hand_scorer), data, HAND_PARAMS)
    assert result.ranks["test/full"].to_list() == [5]
    assert result.ranks["test/full_unmasked"].to_list() == [0]
    assert result.protocol["repeated_targets"] == {"valid": 0, "test": 1}


def test_nan_scores_are_refused_with_advice() -> None:
    def diverged(histories):
        scores = torch.zeros(len(histories), 6)
        scores[-1, 3] = torch.nan
        return scores

    for run in (lambda: validate(Scored(diverged), HAND), lambda: evaluate("x", Scored(diverged), HAND, HAND_PARAMS)):
        with pytest.raises(UserError, match=r"NaN .*users 0\.\.2.*Lower the learning rate"):
            run()


def test_scores_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 6\), got \(3, 7\)"):
        validate(Scored(lambda h: torch.zeros(len(h), 7)), HAND)


def test_nobody_to_evaluate_is_a_user_error() -> None:
    with pytest.raises(UserError, match="three interactions"):
        validate(Scored(hand_scorer), prepared([[0, 1], [2]], 6))


def test_validate_is_the_masked_full_ranking() -> None:
    # Masked validation ranks 0, 1, 3 (above), k = 2.
    found = validate(Scored(hand_scorer), HAND, k=2, batch_size=2)
    assert found == {
        "valid/full/ndcg@2": pytest.approx((1 + 1 / math.log2(3)) / 3),
        "valid/full/hit@2": pytest.approx(2 / 3),
    }
    assert validate(Scored(hand_scorer), HAND, fold="test", k=1)["test/full/hit@1"] == 1.0


def test_the_test_history_includes_the_validation_item() -> None:
    lengths: list[int] = []

    def scorer(histories):
        lengths.extend(len(row) for row in histories)
        assert all(row.dtype == np.int64 for row in histories)
        return torch.zeros(len(histories), 6)

    evaluate("x", Scored(scorer), HAND, HAND_PARAMS)
    assert lengths == [2, 2, 2, 3, 3, 3]


def test_popularity_baseline_scores_training_counts() -> None:
    popular = PopularityPolicy(HAND.item_counts)
    scores = popular.score(popular.encode([np.array([0]), np.array([1])])).dense()
    assert scores.tolist() == [[2, 1, 1, 1, 1, 0]] * 2


def test_oracle_uses_each_users_own_row(tmp_path: Path) -> None:
    data = prepared([[0, 1], [0, 1, 2, 3], [3, 2, 1, 0]], num_items=6, folder=tmp_path)
    assert evaluate_oracle(data, HAND_PARAMS) is None
    sure = np.eye(6, dtype=np.float32)
    table = {"valid": [sure[5], sure[2], sure[1]], "test": [sure[5], sure[3], sure[4]]}
    pl.DataFrame(table, schema={"valid": pl.List(pl.Float32), "test": pl.List(pl.Float32)}).write_parquet(
        tmp_path / "oracle.parquet"
    )
    result = evaluate_oracle(data, HAND_PARAMS)
    assert result is not None
    assert result.metrics["valid/full/ndcg@1"] == 1.0
    assert result.metrics["test/full/ndcg@1"] == 0.5  # the second user's row points elsewhere


def test_protocol_card_states_what_was_compared() -> None:
    protocol = evaluate("hand", Scored(hand_scorer), HAND, HAND_PARAMS).protocol
    assert protocol["data_hash"] == "abc"
    assert (protocol["users"], protocol["items"], protocol["k"]) == (3, 6, [1, 2])
    assert protocol["negatives"]["n"] == 2 and protocol["negatives"]["seed"] == 1
    assert protocol["negatives"]["users_with_fewer"] == 0
    assert len(protocol["negatives"]["digest"]) == 16
    json.dumps(protocol)


def test_users_with_fewer_eligible_items_are_ranked_against_those() -> None:
    # 6 items, sequences of 4: two eligible items each, though four are asked for. Scores 5..0.
    # test targets 3, 0, 1 against {4, 5}, {4, 5}, {2, 3}: all first; valid targets 2, 1, 5: ranks 0, 0, 2.
    result = evaluate("few", Scored(hand_scorer), HAND, EvaluateParams(ks=(1, 2), negatives=4, seed=1))
    assert result.ranks["test/sampled4"].to_list() == [0, 0, 0]
    assert result.ranks["valid/sampled4"].to_list() == [0, 0, 2]
    assert result.protocol["negatives"]["users_with_fewer"] == 3


def test_folds_of_different_users() -> None:
    """By time: user 0 has both targets, user 1 only a validation one, user 2 only a test one, user 3 none."""
    data = replace(
        prepared([[0, 1, 2, 3], [1, 2], [2, 3], [4, 5]], 6),
        cuts=Cuts(np.array([1, 1, 1, 2]), np.array([2, 2, 1, 2])),
    )
    weights = np.random.default_rng(5).random((6, 6)).astype(np.float32)
    result = evaluate("x", Scored(table_scorer(weights)), data, HAND_PARAMS)
    assert result.ranks["user_row"].to_list() == [0, 1, 2]
    assert result.ranks["valid/full"].is_null().to_list() == [False, False, True]
    assert result.ranks["test/full"].is_null().to_list() == [False, True, False]
    assert result.users_of("test").to_list() == [0, 2] == result.slates["user_row"].to_list()
    for fold, places in (("valid", [0, 1]), ("test", [0, 2])):
        alone = data.split(fold)
        expected = []
        for row, target in enumerate(alone.targets):
            scores = table_scorer(weights)([alone.history[row]])[0].numpy()
            unseen = [item for item in range(6) if item not in alone.history[row]]
            expected.append(brute_rank(scores, target, unseen))
        assert result.ranks_of(f"{fold}/full").tolist() == expected
        assert result.ranks[f"{fold}/full"].gather(places).to_list() == expected
        assert result.metrics[f"{fold}/full/hit@1"] == np.mean([rank < 1 for rank in expected])
    assert result.protocol["targets"] == {"valid": 2, "test": 2}
    drawn = sample_negatives(data.sequences.take(np.arange(3)), num_items=6, n=2, seed=HAND_PARAMS.seed).items
    for seed in range(20):  # user 2: item 3 after item 2, among the negatives of user 2
        scorer = table_scorer(np.random.default_rng(seed).random((6, 6)).astype(np.float32))
        rank = evaluate("x", Scored(scorer), data, HAND_PARAMS).ranks["test/sampled2"][2]
        assert rank == brute_rank(scorer([np.array([2])])[0].numpy(), 3, drawn[2].tolist())
    # negatives are the same for a user's two targets
    whole = evaluate("x", Scored(table_scorer(weights)), replace(data, cuts=Cuts(*np.array([[1] * 4, [2, 1, 1, 1]]))),
                     HAND_PARAMS)  # fmt: skip
    assert whole.protocol["negatives"]["digest"] != result.protocol["negatives"]["digest"]  # of other users
    assert whole.ranks["test/sampled2"][0] == result.ranks["test/sampled2"][0]
