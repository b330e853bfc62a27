"""The answers: sentences that say what the intervals say."""

from rl4rec.params import CompareParams
from rl4rec.report import compare_policies
from rl4rec.report.answers import questions
from tests.evaluation.test_compare import evaluation, four

PARAMS = CompareParams(bootstrap_samples=200)


def test_every_question_is_answered_under_both_protocols() -> None:
    # SFT finds 20 of 40 in second place, PPO the same in first place, GRPO one more.
    first, last = questions(compare_policies(four(), PARAMS, k=2))
    assert (first.text, last.text) == ("Is RL better than SFT?", "Is GRPO better than PPO?")
    assert [answer.protocol for answer in first.answers] == ["Full catalogue", "1 target + 100 negatives"]
    assert first.answers[0].sentence == "GRPO and PPO are better than SFT."
    grpo, ppo = first.answers[0].findings
    assert (grpo.policy, grpo.verdict, grpo.change) == ("GRPO", "better", "0.3155 → 0.5250 (+66.4 %)")
    assert ppo.change == "0.3155 → 0.5000 (+58.5 %)" and ppo.interval.startswith("+0.1845 [+0.")
    assert last.answers[0].sentence == "GRPO is not clearly different from PPO."  # one user of 40


def test_different_verdicts_are_told_apart() -> None:
    ranks = {"sft": [1] * 20 + [5] * 20, "ppo": [5] * 40, "grpo": [0] * 20 + [5] * 20}
    given = {name: evaluation(name, values) for name, values in ranks.items()}
    given["sft_continued"] = evaluation("sft_continued", ranks["grpo"])
    first, control, last = questions(compare_policies(given, PARAMS, k=2))
    assert first.answers[1].sentence == "GRPO is better than SFT, and PPO is worse than SFT."
    assert control.text == "Is RL better than more SFT, the control?"
    sentence = "GRPO is not clearly different from SFT continued, and PPO is worse than SFT continued."
    assert control.answers[0].sentence == sentence
    assert last.answers[0].sentence == "GRPO is better than PPO."


def test_a_question_without_policies_is_not_asked() -> None:
    given = {name: value for name, value in four().items() if name in ("sft", "ppo")}
    found = questions(compare_policies(given, PARAMS, k=2))
    assert [question.text for question in found] == ["Is RL better than SFT?"]
    assert found[0].answers[0].sentence == "PPO is better than SFT."
