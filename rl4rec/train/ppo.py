"""PPO over slates (Schulman et al. 2017), on accelerate.

TRL removed its PPOTrainer; this one is ours and reads top to bottom. One step:

1. *Rollout*: `num_sample_generations` slates a prompt for `batch_size x gradient_accumulation_steps` prompts, without
   dropout, from one reading of each history.
2. *Reward*: the metric's gain at each slot, less the KL penalty to the SFT policy.
3. *Advantages*: GAE over the slots (or the slate as one action), whitened over the whole batch.
4. *Update*: `ppo_epochs` passes over mini-batches with the clipped policy and value losses.

Deviations from the paper and from RLHF practice, and why:

- The episode ends at the slot that hits the target: nothing after it changes the reward, and leaving those slots out
  only takes variance away (`live_slots`). With a reward of the user's own it ends at the last slot.
- The value head reads the prompt's state and predicts one value a slot: what the slate still earns from there if it
  has not hit yet. The state does not see the items chosen so far, which keeps one forward pass for all slates.
- With `rl.dropout` on, the old log-probabilities are taken under the same dropout mask as the updates (one seed a
  mini-batch), so the ratio starts at exactly 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from rl4rec.data.dataset import PreparedData
from rl4rec.model.batch import Histories
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.noise import combine
from rl4rec.model.policy import SlatePolicy, SlatePolicyOutput
from rl4rec.params import RLParams
from rl4rec.train.losses import (
    AdaptiveKL,
    bandit,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    gae,
    kl_estimate,
    live_slots,
    masked_mean,
    whiten,
)
from rl4rec.train.monitor import Monitor
from rl4rec.train.prompt_trainer import PromptTrainer
from rl4rec.train.rewards import GainsFunction, make_reward
from rl4rec.train.token_prompts import CandidateRule
from rl4rec.train.trainable import frozen_copy
from rl4rec.train.updates import ppo_steps


class Rollout(NamedTuple):
    """One batch of prompts with their slates; b prompts, g slates each, k slots."""

    history_items: Tensor  # (b, l)
    history_lengths: Tensor  # (b,)
    tables: Tensor | None  # (b,) leave-out item embeddings
    candidates: Tensor | None  # (b, c)
    targets: Tensor  # (b,)
    slates: Tensor  # (b, g, k) item indices
    live: Tensor  # (b, g, k) bool
    gains: Tensor  # (b, g, k)
    old_log_probs: Tensor  # (b, g, k)
    old_values: Tensor  # (b, g, k)
    advantages: Tensor  # (b, g, k) whitened
    returns: Tensor  # (b, g, k)

    def rows(self, start: int, stop: int) -> Rollout:
        """A slice of the batch."""
        parts: dict[str, Any] = {
            name: None if field is None else field[start:stop] for name, field in self._asdict().items()
        }
        return self._replace(**parts)


class ActorCritic(nn.Module):
    """The policy and its value head, in one module so that distributed wrappers see one forward."""

    def __init__(self, policy: SlatePolicy, *, k: int) -> None:
        super().__init__()
        self.policy = policy
        self.value_head = nn.Linear(policy.item_weight().shape[1], k)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        histories: Histories,
        candidates: Tensor | None,
        slates: Tensor,
        temperature: float,
        targets: Tensor | None = None,
    ) -> tuple[SlatePolicyOutput, Tensor]:
        """Log-probabilities with entropies of slates (b, g, k), and values that a prompt's slates share (b, 1, k)."""
        output = self.policy(
            histories=histories,
            candidates=candidates,
            slates=slates,
            temperature=temperature,
            targets=targets,
        )
        return output, self.value_head(output.states).unsqueeze(1)


class PPOTrainer(PromptTrainer):
    """Proximal policy optimisation of a slate policy.

    Arguments as of `PromptTrainer`, and `own_reward`, the function behind `reward_type: custom`.
    """

    name, unit = "ppo", "slates"

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        monitor: Monitor,
        checkpoints: Path,
        *,
        leave_out: LeaveOutEmbeddings | None = None,
        own_reward: GainsFunction | None = None,
    ) -> None:
        self.params = rl.ppo
        self.reward = make_reward(rl, data, own_reward)
        accelerator = Accelerator(
            # There is no data loader here; one that an earlier training of this process left must not end accumulation.
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=rl.ppo.gradient_accumulation_steps, sync_with_dataloader=False
            )
        )
        self.reference = frozen_copy(policy).to(accelerator.device)
        super().__init__(policy, data, rl, rl.ppo, monitor, checkpoints, leave_out=leave_out, accelerator=accelerator)
        self.reference.leave_out = policy.leave_out
        self.rule = CandidateRule(
            rl.candidates, torch.from_numpy(data.item_counts), exclude_seen=policy.config.mask_seen
        )
        self.local_batch = rl.ppo.batch_size * rl.ppo.gradient_accumulation_steps  # prompts
        world = accelerator.num_processes
        model = ActorCritic(policy, k=rl.k)
        self.prepare(
            model,
            model.value_head,
            total_steps=ppo_steps(rl, rl.ppo, prompts=len(self.prompts), world=world),
            samples_per_step=rl.ppo.slates_per_step * world,
        )
        self.value_head = model.value_head
        self.kl_control = AdaptiveKL(rl.ppo.kl_coef, target=rl.ppo.kl_target)

    def state(self) -> dict[str, float]:
        """The adaptive KL coefficient."""
        return {"kl_coef": self.kl_control.value}

    def load_state(self, state: dict[str, float]) -> None:
        """Take back what `state` returned."""
        self.kl_control.value = state["kl_coef"]

    def train_step(self, step: int, *, logged: bool) -> dict[str, float]:
        """One rollout and the updates on it."""
        rollout, stats = self.rollout(step, measure_kl=logged)
        return stats | self.update(rollout, step)

    # --- rollout ----------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, step: int, *, measure_kl: bool) -> tuple[Rollout, dict[str, float]]:
        """Sample slates for each prompt of this step and work out their advantages."""
        policy, params = self.policy, self.params
        world = self.accelerator.num_processes
        histories, targets, seeds = self.read_prompts(step * self.local_batch * world, self.local_batch)
        candidates = self.rule.candidates(histories, targets, seeds)
        support = policy.support(histories, candidates)
        policy.train(False)
        states = policy.prompt_states(histories)
        slates = policy.sample(
            histories,
            support,
            num_slates=params.num_sample_generations,
            k=self.rl.k,
            temperature=params.temperature,
            states=states,
            keys=combine(seeds, targets),
        )
        log_probs = policy.log_probs(
            histories, support, slates, temperature=params.temperature, states=states
        ).log_probs
        values = self.value_head(states).unsqueeze(1)

        gains = self.reward(slates, targets.unsqueeze(1))  # (b, g, k)
        live = live_slots(gains) if self.reward.ends_at_hit else torch.ones_like(gains, dtype=torch.bool)
        rewards = gains
        stats = {
            "reward": gains.sum(-1).mean().item(),
            "hit_share": (slates == targets.view(-1, 1, 1)).any(-1).double().mean().item(),
            "no_signal_share": (gains == 0).all(-1).double().mean().item(),
        }
        if measure_kl or params.kl_coef > 0:
            reference = self.reference.log_probs(histories, support, slates, temperature=params.temperature).log_probs
            kl = self.accelerator.gather(kl_estimate(log_probs, reference).mean()).mean().item()
            stats["kl"] = kl
            rewards = gains - self.kl_control.value * (log_probs - reference) * live
            if params.kl_coef > 0 and params.kl_control == "adaptive":
                self.kl_control.update(kl)

        blank = torch.empty_like(gains)
        drawn = Rollout(*histories, candidates, targets, slates, live, gains, blank, blank, blank, blank)
        if self.rl.dropout:
            old = [self._forward(part, step, number) for number, part in enumerate(self._mini_batches(drawn))]
            log_probs = torch.cat([output.log_probs for output, _ in old if output.log_probs is not None])
            values = torch.cat([values for _, values in old])
        values = values.expand_as(gains)
        if params.advantage == "gae":
            advantages, returns = gae(rewards, values, live, gamma=params.gamma, lam=params.lam)
        else:
            advantages, returns = bandit(rewards * live, values, live)
        gathered = self.accelerator.gather((values.contiguous(), returns, live))
        stats["explained_variance"] = explained_variance(*gathered)
        if params.whiten_advantages:
            advantages = self._whiten_over_processes(advantages, live)
        return drawn._replace(old_log_probs=log_probs, old_values=values, advantages=advantages, returns=returns), stats

    def _whiten_over_processes(self, advantages: Tensor, live: Tensor) -> Tensor:
        gathered, mask = self.accelerator.gather((advantages, live))
        rank = self.accelerator.process_index
        return whiten(gathered, mask)[rank * len(advantages) : (rank + 1) * len(advantages)]

    # --- update -----------------------------------------------------------------------------------

    def update(self, rollout: Rollout, step: int) -> dict[str, float]:
        """Several passes of clipped updates over one rollout; returns means over the updates."""
        params = self.params
        sums: dict[str, list[float]] = defaultdict(list)
        for _ in range(params.ppo_epochs):
            for number, part in enumerate(self._mini_batches(rollout)):
                with self.accelerator.accumulate(self.model):
                    loss, stats = self._loss(part, step, number)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), params.max_grad_norm)
                        stats["grad_norm"] = float(norm)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                for name, value in stats.items():
                    sums[name].append(value)
        return {name: sum(values) / len(values) for name, values in sums.items()}

    def _loss(self, part: Rollout, step: int, number: int) -> tuple[Tensor, dict[str, float]]:
        params = self.params
        output, values = self._forward(part, step, number)
        assert output.log_probs is not None and output.entropy is not None
        policy_loss, clip_fraction = clipped_policy_loss(
            output.log_probs, part.old_log_probs, part.advantages, part.live, clip_range=params.clip_range
        )
        value_loss = clipped_value_loss(
            values, part.old_values, part.returns, part.live, clip_range=params.clip_range_value
        )
        entropy = masked_mean(output.entropy, part.live)
        share = self._share_of_live(part.live)
        loss = share * (policy_loss + params.value_coef * value_loss - params.entropy_coef * entropy)
        stats = {
            "loss": share * policy_loss.item(),
            "value_loss": share * value_loss.item(),
            "entropy": output.entropy.mean().item(),  # over all slots, as GRPO logs it; the bonus is over live ones
            "clip_fraction": share * clip_fraction.item(),
        }
        if output.target_loss is not None:
            loss = loss + self.rl.sft_coef * output.target_loss
            stats["target_loss"] = output.target_loss.item()
        return loss, stats

    def _share_of_live(self, live: Tensor) -> float:
        """Live slots here over the mean over processes: turns the mean of masked means into the mean over all slots."""
        count = live.sum().float()
        return float(count / self.accelerator.reduce(count, "mean"))

    def _forward(self, part: Rollout, step: int, number: int) -> tuple[SlatePolicyOutput, Tensor]:
        """Log-probabilities and values of a mini-batch, under the dropout mask of (step, mini-batch)."""
        self.model.train(self.rl.dropout)
        seed = hash((self.params.seed, step, number, self.accelerator.process_index)) % 2**31
        with _seeded(seed, self.accelerator.device) if self.rl.dropout else nullcontext():
            result: tuple[SlatePolicyOutput, Tensor] = self.model(
                Histories(part.history_items, part.history_lengths, part.tables),
                part.candidates,
                part.slates,
                self.params.temperature,
                targets=part.targets if self.rl.sft_coef > 0 else None,
            )
        return result

    def _mini_batches(self, rollout: Rollout) -> Iterator[Rollout]:
        for start in range(0, self.local_batch, self.params.mini_batch_size):
            yield rollout.rows(start, start + self.params.mini_batch_size)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run under a seed of its own and restore the random state after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
