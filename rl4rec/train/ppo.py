"""PPO over slates (Schulman et al. 2017), top to bottom: history -> slates -> reward -> advantage -> update.

One step:

1. *Slates*: `num_sample_generations` for each of `batch_size x gradient_accumulation_steps` prompts, from one reading
   of each history.
2. *Reward*: the metric's gain at each slot, less the KL penalty to the SFT policy.
3. *Advantage*: GAE over the slots (or the slate as one action), whitened over the whole batch.
4. *Update*: `ppo_epochs` passes over shuffled mini-batches with the clipped policy and value losses.

What to know beside the paper and the practice of language models:

- The episode ends at the slot that hits the target: nothing after it changes the reward, and leaving those slots out
  only takes variance away (`live_slots`). With a reward of the user's own it ends at the last slot.
- The value head reads the prompt's state and predicts one value per slot: what the slate still earns from there if it
  has not hit yet. The state does not see the items chosen so far, which keeps one forward pass for all slates.
- The KL penalty is a part of the reward, as in Ziegler et al. (2019), not of the loss.
- Several processes share the prompts of each mini-batch of a single process.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rl4rec.data.dataset import PreparedData
from rl4rec.model.batch import Rows, Support, place_parts
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import RLParams
from rl4rec.train.log import RunLog
from rl4rec.train.loop import PromptTrainer, Stats, reward_stats
from rl4rec.train.losses import (
    AdaptiveKL,
    bandit,
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    live_slots,
    masked_mean,
    target_cross_entropy,
    whiten,
)
from rl4rec.train.prompts import Prompts
from rl4rec.train.rewards import GainsFunction, make_reward


@dataclass(frozen=True)
class Rollout:
    """One batch of prompts with their slates: b prompts, g slates each, k slots."""

    prompts: Prompts
    support: Support
    slates: Tensor  # (b, g, k) item indices
    live: Tensor  # (b, g, k) bool
    old_log_probs: Tensor  # (b, g, k)
    old_values: Tensor  # (b, g, k)
    advantages: Tensor  # (b, g, k) whitened
    returns: Tensor  # (b, g, k)

    def __getitem__(self, rows: Rows) -> Rollout:
        """Some of the prompts."""
        picked = {name: field[rows.placed if isinstance(field, Tensor) else rows] for name, field in vars(self).items()}
        return Rollout(**picked)


class PPOTrainer(PromptTrainer):
    """Proximal policy optimisation of a slate policy.

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts.
        rl: the `rl` section.
        run: takes log rows and validations.
        crossfit: item embeddings that have not seen the prompts' targets.
        own_reward: the function behind `reward_type: custom`.
    """

    name, unit = "ppo", "slates"

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
        self.params, self.reward = rl.ppo, make_reward(rl, data, own_reward)
        prompts = rl.ppo.batch_size * rl.ppo.gradient_accumulation_steps
        super().__init__(policy, data, rl, rl.ppo, run, crossfit=crossfit, prompts_per_step=prompts)
        self.value_head = nn.Linear(policy.item_vectors().shape[1], rl.k)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.prepare(
            rl.ppo,
            weight_decay=rl.weight_decay,
            total_steps=self.count_steps(rl.ppo),
            samples_per_step=rl.ppo.slates_per_step,
            value_head=self.value_head,
        )
        self.kl_control = AdaptiveKL(rl.ppo.kl_coef, target=rl.ppo.kl_target)

    def state(self) -> dict[str, float]:
        """The adaptive KL coefficient."""
        return {"kl_coef": self.kl_control.value}

    def load_state(self, state: dict[str, float]) -> None:
        """Take back what `state` returned."""
        self.kl_control.value = state["kl_coef"]

    def train_step(self, step: int, *, logged: bool) -> Stats:
        """Draw slates for this step's prompts and update the policy on them."""
        rollout, stats = self.rollout(step, measure_kl=logged)
        return stats | self.update_on(rollout, step)

    # --- slates, rewards, advantages --------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, step: int, *, measure_kl: bool) -> tuple[Rollout, Stats]:
        """Sample slates for each prompt of this step and work out their advantages."""
        policy, params = self.policy, self.params
        prompts = self.read_prompts(step)
        support = policy.support(prompts.histories, prompts.candidates)
        states = self.encode(policy, prompts.histories)
        slates = policy.sample(
            states,
            support,
            num_slates=params.num_sample_generations,
            k=self.rl.k,
            temperature=params.temperature,
            keys=prompts.keys,
        )  # (b, g, k)
        log_probs, _ = policy.log_probs(states, support, slates, temperature=params.temperature)
        values = self.value_head(states.vectors).unsqueeze(1).expand_as(log_probs)  # shared by a prompt's slates

        gains = self.reward(slates, prompts.targets.unsqueeze(1))  # (b, g, k)
        live = live_slots(gains) if self.reward.ends_at_hit else torch.ones_like(gains, dtype=torch.bool)
        rewards = gains
        share = self.share(prompts, self.prompts_per_step)
        stats = reward_stats(slates, prompts.targets, gains, share=share)
        stats["no_signal_share"] = share * (gains == 0).all(-1).double().mean()
        if measure_kl or params.kl_coef > 0:
            apart = self.encode(self.reference, prompts.histories)
            reference, _ = self.reference.log_probs(apart, support, slates, temperature=params.temperature)
            stats["kl"] = kl = share * kl_estimate(log_probs, reference).mean()
            if params.kl_coef > 0:
                rewards = gains - self.kl_control.value * (log_probs - reference) * live
                if params.kl_control == "adaptive":
                    self.kl_control.update(self.accelerator.reduce(kl, "mean").item())

        if params.advantage == "gae":
            advantages, returns = gae(rewards, values, live, gamma=params.gamma, lam=params.lam)
        else:
            advantages, returns = bandit(rewards * live, values, live)
        everywhere = [self.gather_rows(each, self.prompts_per_step) for each in (values, returns, advantages, live)]
        stats["explained_variance"] = explained_variance(everywhere[0], everywhere[1], everywhere[3])
        if params.whiten_advantages:
            mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
            advantages = whiten(everywhere[2], everywhere[3])[mine]
        return Rollout(prompts, support, slates, live, log_probs, values, advantages, returns), stats

    # --- update -----------------------------------------------------------------------------------

    def update_on(self, rollout: Rollout, step: int) -> Stats:
        """Several passes of clipped updates over one rollout; returns means over the mini-batches."""
        params, sums = self.params, defaultdict[str, list[Tensor]](list)
        for epoch in range(params.ppo_epochs):
            for number, rows in enumerate(self.mini_batches(step, epoch), start=1):
                loss, stats = self.loss(rollout[rows])
                self.backward(loss / params.gradient_accumulation_steps)
                if number % params.gradient_accumulation_steps == 0:
                    stats["grad_norm"] = self.update()
                for name, value in stats.items():
                    sums[name].append(value)
        return {name: torch.stack(values).mean() for name, values in sums.items()}

    def mini_batches(self, step: int, epoch: int) -> list[Rows]:
        """This process's rows of each mini-batch of a pass, in an order of the pass's own."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        order = np.random.default_rng([self.params.seed, step, epoch]).permutation(self.prompts_per_step)
        parts = np.split(order, self.prompts_per_step // self.params.mini_batch_size)
        rows = [torch.from_numpy(part[part % processes == rank] // processes) for part in parts]
        return place_parts(rows, self.accelerator.device)

    def loss(self, part: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a mini-batch, whose mean over the processes is that of all its slots, and its numbers."""
        params = self.params
        live_share = self._share_of_live(part.live.sum())
        if not len(part.prompts):
            names = ["loss", "value_loss", "entropy", "clip_fraction"]
            names += ["target_loss"] if self.rl.sft_coef > 0 else []
            # numbers are averaged over the processes name by name
            return self.read_nothing(), dict.fromkeys(names, torch.zeros_like(live_share))
        states = self.encode(self.policy, part.prompts.histories)
        log_probs, entropy = self.policy.log_probs(states, part.support, part.slates, temperature=params.temperature)
        values = self.value_head(states.vectors).unsqueeze(1)
        slots, outside = clipped_surrogate(
            log_probs, part.old_log_probs, part.advantages, low=params.clip_range, high=params.clip_range
        )
        policy_loss = masked_mean(slots, part.live)
        value_loss = clipped_value_loss(
            values, part.old_values, part.returns, part.live, clip_range=params.clip_range_value
        )
        loss = policy_loss + params.value_coef * value_loss - params.entropy_coef * masked_mean(entropy, part.live)
        loss = live_share * loss
        share = self.share(part.prompts, params.mini_batch_size)
        stats = {
            "loss": live_share * policy_loss.detach(),
            "value_loss": live_share * value_loss.detach(),
            "entropy": share * entropy.detach().mean(),  # of all slots, as GRPO logs it; the bonus is of live ones
            "clip_fraction": live_share * masked_mean(outside.to(live_share.dtype), part.live),
        }
        if self.rl.sft_coef > 0:
            scores = self.policy.score_candidates(states, part.support)
            target_loss = target_cross_entropy(scores, part.support, part.prompts.targets)
            stats["target_loss"] = share * target_loss.detach()
            loss = loss + self.rl.sft_coef * share * target_loss
        return loss, stats

    def _share_of_live(self, count: Tensor) -> Tensor:
        """As `share` for live slots, of which processes have different numbers even with equally many prompts."""
        count = count.float()
        mean: Tensor = self.accelerator.reduce(count, "mean")
        return count / mean
