"""GRPO over slates (Shao et al. 2024), top to bottom: history -> slates -> reward -> advantage -> update.

One step:

1. *Slates*: `num_sample_generations` for each of `batch_size x gradient_accumulation_steps` prompts, from one reading
   of each history.
2. *Reward*: the metric of each slate.
3. *Advantage*: the reward less the mean of the prompt's group, optionally scaled.
4. *Update*: `num_iterations` times the gradient of the clipped surrogate over all slots.

What to know beside the paper:

- With the defaults (one update per rollout, no scaling, no KL) every ratio is 1, nothing is clipped, and this is
  REINFORCE with the group's mean as baseline. The name stands for what it becomes with other settings.
- A slate always has k slots. So the means over tokens, over sequences and over a fixed length, which tell GRPO, BNPO,
  DAPO and Dr. GRPO apart, are one number: `loss_type: grpo` is all of them. `cispo` differs.
- An advantage holds for all slots of its slate, those after the hit too, as in the paper. PPO here leaves them out.
- A step is one rollout with its updates; `max_steps` counts rollouts, where TRL counts updates.

`tests/train/test_grpo_against_trl.py` compares losses and gradients with TRL's GRPOTrainer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rl4rec.data.dataset import PreparedData
from rl4rec.model.batch import Support
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import RLParams
from rl4rec.train.log import RunLog
from rl4rec.train.loop import PromptTrainer, Stats, reward_stats
from rl4rec.train.losses import (
    cispo_loss,
    clipped_surrogate,
    group_advantages,
    kl_estimate,
    kl_penalty,
    target_cross_entropy,
)
from rl4rec.train.prompts import Prompts
from rl4rec.train.rewards import GainsFunction, make_reward


class Rollout(NamedTuple):
    """A part of a step's prompts with their slates: b prompts, g slates each, k slots."""

    prompts: Prompts
    support: Support
    slates: Tensor  # (b, g, k) item indices
    advantages: Tensor  # (b, g)
    reference: Tensor | None  # (b, g, k) log-probabilities under the SFT policy, where they are needed


class GRPOTrainer(PromptTrainer):
    """Group relative policy optimisation of a slate policy.

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts.
        rl: the `rl` section.
        run: takes log rows and validations.
        crossfit: item embeddings that have not seen the prompts' targets.
        own_reward: the function behind `reward_type: custom`.
    """

    name, unit = "grpo", "slates"

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        run: RunLog,
        *,
        crossfit: CrossfitEmbeddings | None = None,
        own_reward: GainsFunction | None = None,
    ) -> None:
        self.params, self.reward = rl.grpo, make_reward(rl, data, own_reward)
        prompts = rl.grpo.batch_size * rl.grpo.gradient_accumulation_steps
        super().__init__(policy, data, rl, rl.grpo, run, crossfit=crossfit, prompts_per_step=prompts)
        self.prepare(
            rl.grpo,
            weight_decay=rl.weight_decay,
            total_steps=self.count_steps(rl.grpo),
            samples_per_step=rl.grpo.slates_per_step,
        )

    def train_step(self, step: int, *, logged: bool) -> Stats:
        """Draw slates for this step's prompts and update the policy on them."""
        parts, stats = self.rollout(step, with_reference=logged or self.params.kl_coef > 0)
        old: list[Tensor] = []  # log-probabilities before the first update
        for iteration in range(self.params.num_iterations):
            for number, part in enumerate(parts):
                if not len(part.prompts):
                    self.backward(self.read_nothing())
                    continue
                log_probs, loss, numbers = self.loss(part, old[number] if iteration else None)
                if not iteration:
                    old.append(log_probs.detach())
                share = self.share(part.prompts, self.prompts_per_step)
                self.backward(share * loss)
                for name, value in numbers.items():
                    stats[name] = stats.get(name, 0.0) + share / self.params.num_iterations * value
            stats["grad_norm"] = self.update()
        return stats

    @torch.no_grad()
    def rollout(self, step: int, *, with_reference: bool) -> tuple[list[Rollout], Stats]:
        """Slates and their advantages for this step's prompts, in parts of `batch_size` prompts."""
        params, policy = self.params, self.policy
        prompts = self.read_prompts(step)
        support = policy.support(prompts.histories, prompts.candidates)
        slates = policy.sample(
            self.encode(policy, prompts.histories),
            support,
            num_slates=params.num_sample_generations,
            k=self.rl.k,
            temperature=params.temperature,
            keys=prompts.keys,
        )  # (b, g, k)
        gains = self.reward(slates, prompts.targets.unsqueeze(1))  # (b, g, k)
        rewards = gains.sum(-1)  # (b, g)
        everywhere = self.gather_rows(rewards, self.prompts_per_step) if params.scale_rewards == "batch" else rewards
        advantages = group_advantages(rewards, params.scale_rewards, spread=everywhere)
        share = self.share(prompts, self.prompts_per_step)
        stats = reward_stats(slates, prompts.targets, gains, share=share)
        stats["no_signal_share"] = share * (rewards == rewards[:, :1]).all(1).double().mean()
        reference = None
        if with_reference:
            states = self.encode(self.reference, prompts.histories)
            reference, _ = self.reference.log_probs(states, support, slates, temperature=params.temperature)
        parts = []
        most = math.ceil(self.prompts_per_step / self.accelerator.num_processes)  # prompts of a process
        for start in range(0, most, params.batch_size):
            rows = slice(start, start + params.batch_size)
            parts.append(
                Rollout(
                    prompts[rows],
                    support[rows],
                    slates[rows],
                    advantages[rows],
                    None if reference is None else reference[rows],
                )
            )
        return parts, stats

    def loss(self, part: Rollout, old: Tensor | None) -> tuple[Tensor, Tensor, Stats]:
        """Log-probabilities (b, g, k), the loss of a part, and its numbers.

        Args:
            part: of a rollout.
            old: (b, g, k) log-probabilities under the policy that sampled; None: these, the policy is that one.
        """
        params = self.params
        states = self.encode(self.policy, part.prompts.histories)
        log_probs, entropy = self.policy.log_probs(states, part.support, part.slates, temperature=params.temperature)
        old = log_probs.detach() if old is None else old
        advantages = part.advantages.unsqueeze(-1)
        if params.loss_type == "cispo":
            slots, outside = cispo_loss(log_probs, old, advantages, max_ratio=params.cispo_max_ratio)
        else:
            high = params.clip_range if params.clip_range_high is None else params.clip_range_high
            slots, outside = clipped_surrogate(log_probs, old, advantages, low=params.clip_range, high=high)
        loss = slots.mean()
        stats: Stats = {
            "loss": loss.detach(),
            "entropy": entropy.detach().mean(),
            "clip_fraction": outside.double().mean(),
        }
        if params.entropy_coef > 0:
            loss = loss - params.entropy_coef * entropy.mean()
        if part.reference is not None:
            stats["kl"] = kl_estimate(log_probs.detach(), part.reference).mean()
            if params.kl_coef > 0:
                loss = loss + params.kl_coef * kl_penalty(log_probs, old, part.reference).mean()
        if self.rl.sft_coef > 0:
            scores = self.policy.score_candidates(states, part.support)
            target_loss = target_cross_entropy(scores, part.support, part.prompts.targets)
            stats["target_loss"] = target_loss.detach()
            loss = loss + self.rl.sft_coef * target_loss
        return log_probs, loss, stats
