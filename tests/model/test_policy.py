"""The slate policy: reading histories, its two seams, both generation routes, saving."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl4rec.model.policy import SlatePolicy, SlatePolicyConfig
from rl4rec.train.losses import target_cross_entropy

HISTORIES = [np.array([1, 2, 3]), np.array([4]), np.arange(12), np.array([20, 3, 9, 7, 11])]


@pytest.fixture(params=["slate", "autoregressive"])
def policy(request: pytest.FixtureRequest, tiny_policy: SlatePolicy) -> SlatePolicy:
    tiny_policy.config.generation = request.param
    return tiny_policy


def candidate_sets() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randperm(24, generator=generator)[:16].sort().values for _ in HISTORIES]
    return torch.stack(rows)


@pytest.mark.parametrize("candidates", [None, candidate_sets()], ids=["full", "candidates"])
def test_recomputed_log_probs_do_not_depend_on_the_batch(policy: SlatePolicy, candidates: torch.Tensor | None) -> None:
    states = policy.encode(HISTORIES)
    support = policy.support(states.histories, candidates)
    slates = policy.sample(states, support, num_slates=5, k=4)
    together = policy.log_probs(states, support, slates)
    for row, history in enumerate(HISTORIES):
        alone = policy.encode([history])
        own = policy.support(alone.histories, None if candidates is None else candidates[row : row + 1])
        result = policy.log_probs(alone, own, slates[row : row + 1])
        assert torch.allclose(result.log_probs[0], together.log_probs[row], atol=1e-5)
        assert torch.allclose(result.entropy[0], together.entropy[row], atol=1e-5)


def test_slates_are_distinct_unseen_and_among_the_candidates(policy: SlatePolicy) -> None:
    candidates = candidate_sets()
    states = policy.encode(HISTORIES)
    slates = policy.sample(states, policy.support(states.histories, candidates), num_slates=20, k=5)
    for row, history in enumerate(HISTORIES):
        assert set(slates[row].flatten().tolist()) <= set(candidates[row].tolist()) - set(history[-8:].tolist())
        assert all(len(set(slate)) == 5 for slate in slates[row].tolist())


def test_autoregressive_log_probs_are_those_of_the_language_model_step_by_step(tiny_policy: SlatePolicy) -> None:
    tiny_policy.config.score = "dot"  # the language model's own
    tiny_policy.config.generation = "autoregressive"
    history, slate = [1, 2, 3], [7, 20, 5]
    states = tiny_policy.encode([np.array(history)])
    result = tiny_policy.log_probs(states, tiny_policy.support(states.histories), torch.tensor([[slate]]))
    expected = []
    for slot in range(3):
        tokens = torch.tensor([history + slate[:slot]]) + tiny_policy.config.item_offset
        logits = tiny_policy.lm(input_ids=tokens).logits[0, -1, tiny_policy.config.item_offset :].double()
        logits[history + slate[:slot]] = -torch.inf
        expected.append(torch.log_softmax(logits, 0)[slate[slot]].item())
    assert result.log_probs[0, 0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("source", [{"generator": torch.Generator().manual_seed(0)}, {"keys": torch.tensor([7])}])
def test_autoregressive_sampling_follows_its_log_probs(tiny_policy: SlatePolicy, source: dict[str, Any]) -> None:
    tiny_policy.config.generation = "autoregressive"
    states = tiny_policy.encode([np.array([1, 2])])
    support = tiny_policy.support(states.histories, torch.tensor([[5, 6, 7]]))
    slates = tiny_policy.sample(states, support, num_slates=6000, k=2, **source)
    for slate in ([5, 6], [6, 5], [7, 5], [5, 7], [6, 7], [7, 6]):
        share = (slates[0] == torch.tensor(slate)).all(-1).double().mean().item()
        log_prob = tiny_policy.log_probs(states, support, torch.tensor([[slate]])).log_probs.sum()
        assert share == pytest.approx(log_prob.exp().item(), abs=0.03)


@pytest.mark.parametrize("generation", ["slate", "autoregressive"])
def test_slates_of_a_key_do_not_depend_on_the_batch(tiny_policy: SlatePolicy, generation: str) -> None:
    tiny_policy.config.generation = generation
    keys = torch.tensor([11, 2**32 - 1, 11])
    drawn = []
    for rows in ([0, 1, 2], [2], [1, 0]):
        states = tiny_policy.encode([HISTORIES[row] for row in rows])
        support = tiny_policy.support(states.histories)
        drawn.append(tiny_policy.sample(states, support, num_slates=3, k=4, keys=keys[rows]))
    assert torch.equal(drawn[0][[2]], drawn[1]) and torch.equal(drawn[0][[1, 0]], drawn[2])
    assert len(drawn[0][0].unique(dim=0)) == 3  # a prompt's slates have noise of their own


def test_both_routes_agree_on_the_first_slot(tiny_policy: SlatePolicy) -> None:
    states = tiny_policy.encode(HISTORIES)
    support = tiny_policy.support(states.histories)
    slates = tiny_policy.sample(states, support, num_slates=3, k=4)
    fast = tiny_policy.log_probs(states, support, slates)
    tiny_policy.config.generation = "autoregressive"
    plain = tiny_policy.log_probs(states, support, slates)
    assert torch.allclose(fast.log_probs[..., 0], plain.log_probs[..., 0], atol=1e-5)
    assert torch.allclose(fast.entropy[..., 0], plain.entropy[..., 0], atol=1e-5)
    assert not torch.allclose(fast.log_probs[..., 2], plain.log_probs[..., 2], atol=1e-3)


@pytest.mark.parametrize("candidates", [None, candidate_sets()], ids=["full", "candidates"])
@pytest.mark.parametrize("rows", [torch.tensor([3, 0]), slice(1, 3), torch.tensor([2, 2, 1])], ids=str)
def test_rows_of_states_can_be_picked(
    policy: SlatePolicy, rows: torch.Tensor | slice, candidates: torch.Tensor | None
) -> None:
    states = policy.encode(HISTORIES)
    support = policy.support(states.histories, candidates)
    slates = policy.sample(states, support, num_slates=2, k=3)
    whole = policy.log_probs(states, support, slates)
    picked = policy.log_probs(states[rows], support[rows], slates[rows])
    assert torch.allclose(picked.log_probs, whole.log_probs[rows], atol=1e-5)
    assert torch.allclose(picked.entropy, whole.entropy[rows], atol=1e-5)
    torch.testing.assert_close(policy.score(states[rows]).dense(), policy.scores(HISTORIES)[rows])
    scores = policy.score_candidates(states, support)
    assert torch.allclose(policy.score_candidates(states[rows], support[rows]), scores[rows], atol=1e-5)
    keys = torch.tensor([5, 6, 7, 8])
    drawn = policy.sample(states, support, num_slates=2, k=3, keys=keys)
    assert torch.equal(policy.sample(states[rows], support[rows], num_slates=2, k=3, keys=keys[rows]), drawn[rows])


def test_histories_may_come_padded_or_as_they_are(tiny_policy: SlatePolicy) -> None:
    padded = tiny_policy.pad_histories(HISTORIES)
    assert padded.lengths.tolist() == [3, 1, 8, 5]
    assert torch.equal(tiny_policy.encode(padded).vectors, tiny_policy.encode(HISTORIES).vectors)
    positions = tiny_policy.encode_positions(padded)  # (b, l, d)
    last = positions[torch.arange(4), padded.lengths - 1]
    assert torch.allclose(tiny_policy.encode(HISTORIES).vectors, last, atol=1e-5)


def test_log_probs_have_gradients_and_samples_have_none(policy: SlatePolicy) -> None:
    states = policy.encode(HISTORIES)
    support = policy.support(states.histories, candidate_sets())
    slates = policy.sample(states, support, num_slates=2, k=3, temperature=0.7)
    result = policy.log_probs(states, support, slates, temperature=0.7)
    assert result.log_probs.requires_grad and result.entropy.requires_grad and not slates.is_floating_point()
    (-result.log_probs.sum()).backward()
    assert policy.lm.transformer.ln_f.weight.grad.abs().sum() > 0
    with torch.no_grad():
        again = policy.log_probs(policy.encode(HISTORIES), support, slates, temperature=0.7)
    assert torch.allclose(result.log_probs, again.log_probs, atol=1e-6)


def test_temperature_divides_the_scores_of_log_probs_and_samples(policy: SlatePolicy) -> None:
    history = np.array([1, 2])
    states = policy.encode([history])
    support = policy.support(states.histories)
    scores = policy.scores([history])[0]
    scores[[1, 2]] = -torch.inf
    expected = torch.log_softmax(scores / 0.5, 0)[7]
    result = policy.log_probs(states, support, torch.tensor([[[7, 3]]]), temperature=0.5)
    assert result.log_probs[0, 0, 0].item() == pytest.approx(expected.item(), abs=1e-4)
    cold = policy.sample(states, support, num_slates=50, k=1, temperature=1e-3)
    assert (cold == scores.argmax()).all()


def test_scores_of_candidates_are_those_of_the_whole_catalogue(tiny_policy: SlatePolicy) -> None:
    states = tiny_policy.encode(HISTORIES)
    whole = states.vectors @ tiny_policy.item_vectors().T
    support = tiny_policy.support(states.histories, candidate_sets())
    assert support.items is not None
    scores = tiny_policy.score_candidates(states, support)
    assert torch.allclose(scores, whole.gather(1, support.items.clamp_max(tiny_policy.num_items - 1)), atol=1e-5)


def test_cosine_scores_are_cosines_over_the_temperature(tiny_policy: SlatePolicy) -> None:
    tiny_policy.config.score = "dot"
    states, items, _ = tiny_policy.score(tiny_policy.encode(HISTORIES))
    tiny_policy.config.score, tiny_policy.config.score_temperature = "cosine", 0.1
    expected = torch.nn.functional.cosine_similarity(states[:, None], items[None], dim=-1) / 0.1
    assert torch.allclose(tiny_policy.scores(HISTORIES), expected, atol=1e-5)
    assert torch.allclose(tiny_policy.item_vectors().norm(dim=1), torch.ones(24), atol=1e-5)


def test_supervised_term_is_the_cross_entropy_on_the_support(tiny_policy: SlatePolicy) -> None:
    states = tiny_policy.encode([np.array([1, 2])])
    support = tiny_policy.support(states.histories, torch.tensor([[3, 8, 9]]))
    loss = target_cross_entropy(tiny_policy.score_candidates(states, support), support, torch.tensor([8]))
    scores = tiny_policy.scores([np.array([1, 2])])[0, [3, 8, 9]]
    assert loss.item() == pytest.approx(-torch.log_softmax(scores, 0)[1].item(), abs=1e-5)


def test_recommend_is_the_masked_ranking(tiny_policy: SlatePolicy) -> None:
    items, scores = tiny_policy.recommend(HISTORIES, k=3)
    for row, history in enumerate(HISTORIES):
        own = tiny_policy.scores([history])[0]
        own[history[-8:]] = -torch.inf
        assert items[row].tolist() == own.argsort(descending=True)[:3].tolist()
        assert torch.allclose(scores[row], own[items[row]], atol=1e-5)


def test_saved_as_safetensors_and_loaded_equal(policy: SlatePolicy, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "policy")
    assert sorted(path.name for path in (tmp_path / "policy").iterdir()) == ["config.json", "model.safetensors"]
    loaded = SlatePolicy.from_pretrained(tmp_path / "policy")
    assert isinstance(loaded.config, SlatePolicyConfig) and loaded.config.generation == policy.config.generation
    assert torch.equal(loaded.scores(HISTORIES), policy.scores(HISTORIES))
    weights = loaded.lm.get_input_embeddings().weight, loaded.lm.get_output_embeddings().weight
    assert weights[0].data_ptr() == weights[1].data_ptr()  # still tied


@pytest.mark.parametrize("act", ["encode", "sample", "log_probs", "recommend"])
def test_the_mode_is_the_callers(policy: SlatePolicy, act: str) -> None:
    """No call turns dropout on or off: trainers and loaders do."""
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    found = []
    for training in (False, True):
        policy.train(training)
        states = policy.encode(HISTORIES)
        support = policy.support(states.histories)
        slates = torch.arange(13, 16).expand(4, 1, 3)
        results = []
        for _ in range(2):
            match act:
                case "encode":
                    results.append(policy.encode(HISTORIES).vectors)
                case "sample":
                    seeded = torch.Generator().manual_seed(1)
                    again = policy.encode(HISTORIES)
                    results.append(policy.sample(again, support, num_slates=9, k=3, generator=seeded))
                case "log_probs":
                    results.append(policy.log_probs(policy.encode(HISTORIES), support, slates).log_probs)
                case "recommend":
                    results.append(policy.recommend(HISTORIES, k=3)[1])
        assert policy.training is training
        found.append(torch.equal(*results))
    assert found == [True, False]
