"""The promotion decision, case by case."""

import numpy as np
import pytest

from rl4rec.ops.gate import Check, Measured, decide
from rl4rec.params import CompareParams, GateParams

COMPARE = CompareParams(bootstrap_samples=1000)
NDCG, HIT, COVERAGE = "test/full/ndcg@10", "test/full/hit@10", "test/full/coverage@10"
GATE = GateParams(metric=NDCG, margin=0.0, guards={HIT: 0.05, COVERAGE: 0.1})
USERS = 400


def policy(*, ndcg: float = 0.5, hit: float = 0.6, coverage: float = 0.8) -> Measured:
    """Per-user values that alternate around a mean by 0.1, alike in all policies: differences have no variance."""
    wave = np.where(np.arange(USERS) % 2 == 0, 0.1, -0.1)
    return Measured({NDCG: ndcg + wave, HIT: hit + wave}, {COVERAGE: coverage})


@pytest.mark.parametrize(
    ("candidate", "gate", "promoted", "reason"),
    [
        (policy(ndcg=0.51), GATE, True, "better and no guard"),
        (policy(), GATE, False, "test/full/ndcg@10 is not clearly better"),
        (policy(ndcg=0.49), GATE, False, "not clearly better"),
        (policy(ndcg=0.51), GATE.model_copy(update={"margin": 0.03}), False, "not clearly better"),  # +2 % < 3 %
        (policy(ndcg=0.53), GATE.model_copy(update={"margin": 0.03}), True, "better"),
        (policy(ndcg=0.49), GATE.model_copy(update={"margin": -0.03}), True, "better"),  # no more than 3 % worse
        (policy(ndcg=0.51, hit=0.58), GATE, True, "no guard"),  # -3.3 % of an allowed 5 %
        (policy(ndcg=0.51, hit=0.56), GATE, False, "test/full/hit@10 may be worse"),  # -6.7 %
        (policy(ndcg=0.51, coverage=0.73), GATE, True, "no guard"),
        (policy(ndcg=0.51, coverage=0.71), GATE, False, "test/full/coverage@10 may be worse"),
        (policy(ndcg=0.51, hit=0.5, coverage=0.1), GATE, False, "test/full/hit@10 and test/full/coverage@10"),
        (
            policy(ndcg=0.49, hit=0.5),
            GATE,
            False,
            "test/full/ndcg@10 is not clearly better",
        ),  # the metric is named first
        (policy(ndcg=0.51, hit=0.5, coverage=0.1), GATE.model_copy(update={"guards": {}}), True, "no guard"),
    ],
)
def test_decision(candidate: Measured, gate: GateParams, promoted: bool, reason: str) -> None:
    decision = decide(candidate, policy(), gate, COMPARE)
    assert decision.promoted == promoted
    assert reason in decision.reason
    assert [check.metric for check in decision.checks] == [gate.metric, *gate.guards]


def test_without_a_champion_any_candidate_will_do() -> None:
    assert decide(policy(ndcg=0.0), None, GATE, COMPARE).promoted


def test_changes_are_relative_to_the_champion_with_their_interval() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.random(USERS)
    ours = theirs + rng.normal(0.02, 0.1, USERS)
    found = decide(
        Measured({NDCG: ours}, {}),
        Measured({NDCG: theirs}, {}),
        GateParams(guards={}),
        COMPARE,
    ).checks[0]
    assert found.change == pytest.approx((ours.mean() - theirs.mean()) / theirs.mean())
    error = (ours - theirs).std() / np.sqrt(USERS) / theirs.mean()
    assert found.lower == pytest.approx(found.change - 1.96 * error, abs=0.3 * error)
    assert found.upper == pytest.approx(found.change + 1.96 * error, abs=0.3 * error)


def test_a_noisy_gain_is_refused_although_its_mean_is_positive() -> None:
    rng = np.random.default_rng(1)
    theirs = rng.random(USERS)
    noise = rng.normal(0, 0.5, USERS)
    ours = theirs + noise - noise.mean() + 0.01
    decision = decide(
        Measured({NDCG: ours}, {}),
        Measured({NDCG: theirs}, {}),
        GateParams(guards={}),
        COMPARE,
    )
    assert decision.checks[0].change > 0
    assert not decision.promoted


def test_a_champion_without_a_hit_is_beaten_by_absolute_difference() -> None:
    nothing = Measured({NDCG: np.zeros(USERS)}, {})
    decision = decide(Measured({NDCG: np.full(USERS, 0.1)}, {}), nothing, GateParams(guards={}), COMPARE)
    assert decision.promoted
    assert decision.checks[0].change == pytest.approx(0.1)


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match=r"test/full/ndcg@99 was not measured; there is .*test/full/ndcg@10"):
        decide(policy(), policy(), GATE.model_copy(update={"metric": "test/full/ndcg@99"}), COMPARE)


def test_a_check_reads_as_a_sentence() -> None:
    check = Check(NDCG, 0.05, 0.051, 0.02, 0.01, 0.03, 0.0, True)
    assert str(check) == "test/full/ndcg@10: 0.0500 -> 0.0510, +2.00% [+1.00%, +3.00%], must be above +0.00%: yes"
