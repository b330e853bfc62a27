"""PPO over slates (Schulman et al. 2017), on accelerate.

TRL removed its PPOTrainer; this one is ours and reads top to bottom. One step:

1. *Rollout*: one slate a prompt for `batch_size x gradient_accumulation_steps` prompts, without dropout.
2. *Reward*: the metric's gain at each slot, less the KL penalty to the SFT policy.
3. *Advantages*: GAE over the slots (or the slate as one action), whitened over the whole batch.
4. *Update*: `ppo_epochs` passes over mini-batches with the clipped policy and value losses.

Deviations from the paper and from RLHF practice, and why:

- The episode ends at the slot that hits the target: nothing after it changes the reward, and leaving those slots out
  only takes variance away (`live_slots`).
- The value head reads the prompt's state and predicts one value a slot: what the slate still earns from there if it
  has not hit yet. The state does not see the items chosen so far, which keeps one forward pass for a whole slate.
- With `rl.dropout` on, the old log-probabilities are taken under the same dropout mask as the updates (one seed a
  mini-batch), so the ratio starts at exactly 1.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import get_scheduler

from rl4rec.data.prepared import PreparedData
from rl4rec.leave_out import LeaveOutEmbeddings
from rl4rec.metrics import slate_gains
from rl4rec.noise import combine
from rl4rec.params import RLParams
from rl4rec.policy import SlatePolicy, SlatePolicyOutput
from rl4rec.rl.advantages import bandit, explained_variance, gae, live_slots, whiten
from rl4rec.rl.losses import AdaptiveKL, clipped_policy_loss, clipped_value_loss, kl_estimate, masked_mean
from rl4rec.support import Histories
from rl4rec.trainers.checkpoints import keep_only, latest_checkpoint
from rl4rec.trainers.monitor import Monitor, peak_memory_mb
from rl4rec.trainers.token_prompts import CandidateRule, prompts_of
from rl4rec.trainers.trainable import frozen_copy, set_dropout, set_trainable
from rl4rec.trainers.updates import ppo_steps


class Rollout(NamedTuple):
    """One batch of prompts with a slate each; b prompts, k slots."""

    history_items: Tensor  # (b, l)
    history_lengths: Tensor  # (b,)
    tables: Tensor | None  # (b,) leave-out item embeddings
    candidates: Tensor | None  # (b, c)
    targets: Tensor  # (b,)
    slates: Tensor  # (b, k) item indices
    live: Tensor  # (b, k) bool
    gains: Tensor  # (b, k)
    old_log_probs: Tensor  # (b, k)
    old_values: Tensor  # (b, k)
    advantages: Tensor  # (b, k) whitened
    returns: Tensor  # (b, k)

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
        """Slate log-probabilities with entropies (b, 1, k), and values (b, k)."""
        output = self.policy(
            histories=histories,
            candidates=candidates,
            slates=slates.unsqueeze(1),
            temperature=temperature,
            targets=targets,
        )
        return output, self.value_head(output.states)


class PPOTrainer:
    """Proximal policy optimisation of a slate policy.

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts, see `prompts_of`.
        rl: the `rl` section.
        monitor: takes log rows and validations.
        checkpoints: folder for resuming an interrupted run.
        leave_out: item embeddings that have not seen the prompts' targets (`rl.crossfit`).
    """

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        monitor: Monitor,
        checkpoints: Path,
        *,
        leave_out: LeaveOutEmbeddings | None = None,
    ):
        self.rl, self.params, self.monitor, self.checkpoints = rl, rl.ppo, monitor, checkpoints
        self.accelerator = Accelerator(gradient_accumulation_steps=self.params.gradient_accumulation_steps)
        self.reference = frozen_copy(policy).to(self.accelerator.device)
        set_trainable(policy, rl.trainable, rl.lora)
        set_dropout(policy, rl.dropout)
        self.rule = CandidateRule(
            rl.candidates, torch.from_numpy(data.item_counts), exclude_seen=policy.config.mask_seen
        )
        self.prompts = prompts_of(data, rl, policy, seed=self.params.seed)
        world = self.accelerator.num_processes
        self.local_batch = self.params.slates_per_step
        self.slates_per_step = self.local_batch * world
        self.total_steps = ppo_steps(rl, self.params, prompts=len(self.prompts), world=world)

        model = ActorCritic(policy, k=rl.k)
        groups = [
            {"params": [p for p in policy.parameters() if p.requires_grad], "lr": self.params.learning_rate},
            {"params": list(model.value_head.parameters()), "lr": self.params.value_learning_rate},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=rl.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if leave_out is not None:
            policy.leave_out = self.reference.leave_out = leave_out.to(self.accelerator.device)
        self.scheduler = get_scheduler(self.params.lr_scheduler, optimizer, 0, self.total_steps)
        self.accelerator.register_for_checkpointing(self.scheduler)
        self.kl_control = AdaptiveKL(self.params.kl_coef, target=self.params.kl_target)

    @property
    def policy(self) -> SlatePolicy:
        """The policy in training."""
        policy: SlatePolicy = self.accelerator.unwrap_model(self.model).policy
        return policy

    def train(self, *, digest: str) -> None:
        """Run all steps, or those that are left after an interruption of the run that `digest` identifies."""
        step = self._resume(digest)
        if step == 0:
            self.monitor.validate(self.policy, step=0, samples=0, candidate=False)
        window: dict[str, list[float]] = defaultdict(list)
        logged_at, logged_step = self.monitor.seconds, step
        bar = tqdm(total=self.total_steps, initial=step, desc="ppo", unit="step", disable=not sys.stderr.isatty())
        while step < self.total_steps:
            measure = (step + 1) % self.rl.logging_steps == 0
            rollout, stats = self.rollout(step, measure_kl=measure)
            stats |= self.update(rollout, step)
            stats = self._mean_over_processes(stats)
            self.scheduler.step()
            step += 1
            bar.update()
            for name, value in stats.items():
                window[name].append(value)
            samples = step * self.slates_per_step
            if measure or step == self.total_steps:
                row = {f"train/{name}": sum(values) / len(values) for name, values in window.items()}
                row["train/learning_rate"] = self.scheduler.get_last_lr()[0]
                seconds = self.monitor.seconds - logged_at
                row["train/slates_per_second"] = (step - logged_step) * self.slates_per_step / max(seconds, 1e-9)
                row["train/peak_memory_mb"] = peak_memory_mb()
                self.monitor.log(row, step=step, samples=samples)
                window.clear()
                logged_at, logged_step = self.monitor.seconds, step
            if step % self.rl.eval_every == 0 or step == self.total_steps:
                self.monitor.validate(self.policy, step=step, samples=samples)
                self._save(step)
        bar.close()
        self.monitor.finish(step=step, samples=step * self.slates_per_step)
        self.accelerator.wait_for_everyone()  # nobody may still be writing when the caller cleans up

    # --- rollout ----------------------------------------------------------------------------------

    @torch.no_grad()
    def rollout(self, step: int, *, measure_kl: bool) -> tuple[Rollout, dict[str, float]]:
        """Sample a slate for each prompt of this step and work out its advantages."""
        policy, params = self.policy, self.params
        # in turns, so that the n-th mini-batches of all processes are the n-th one of a single process
        batch = self.prompts.visit(step * self.slates_per_step, self.slates_per_step)
        batch = batch.share(self.accelerator.process_index, self.accelerator.num_processes)
        seeds = torch.from_numpy(batch.seeds).to(policy.device)
        tables = None if policy.leave_out is None else policy.leave_out.of_seeds(seeds)
        histories = policy.pad_histories(batch.histories)._replace(tables=tables)
        targets = torch.from_numpy(batch.targets).to(policy.device)
        candidates = self.rule.candidates(histories, targets, seeds)
        support = policy.support(histories, candidates)
        slates = policy.sample(
            histories,
            support,
            num_slates=1,
            k=self.rl.k,
            temperature=params.temperature,
            keys=combine(seeds, targets),
        )[:, 0]

        weights = (self.rl.mixed.ndcg, self.rl.mixed.hit, self.rl.mixed.mrr)
        gains = slate_gains(slates, targets, reward_type=self.rl.reward_type, weights=weights)  # (b, k)
        live = live_slots(gains)
        rewards = gains
        stats = {
            "reward": gains.sum(-1).mean().item(),
            "hit_share": (gains > 0).any(-1).double().mean().item(),
            "no_signal_share": (gains == 0).all(-1).double().mean().item(),
        }
        if measure_kl or params.kl_coef > 0:
            log_ratio = self._log_ratio_to_reference(histories, candidates, slates)
            kl = self.accelerator.gather(kl_estimate(log_ratio, torch.zeros_like(log_ratio)).mean()).mean().item()
            stats["kl"] = kl
            rewards = gains - self.kl_control.value * log_ratio * live
            if params.kl_coef > 0 and params.kl_control == "adaptive":
                self.kl_control.update(kl)

        blank = torch.empty_like(gains)
        drawn = Rollout(*histories, candidates, targets, slates, live, gains, blank, blank, blank, blank)
        old = [self._forward(part, step, number) for number, part in enumerate(self._mini_batches(drawn))]
        old_log_probs = torch.cat([output.log_probs[:, 0] for output, _ in old if output.log_probs is not None])
        old_values = torch.cat([values for _, values in old])
        if params.advantage == "gae":
            advantages, returns = gae(rewards, old_values, live, gamma=params.gamma, lam=params.lam)
        else:
            advantages, returns = bandit(rewards * live, old_values, live)
        stats["explained_variance"] = explained_variance(*self.accelerator.gather((old_values, returns, live)))
        if params.whiten_advantages:
            advantages = self._whiten_over_processes(advantages, live)
        rollout = drawn._replace(
            old_log_probs=old_log_probs, old_values=old_values, advantages=advantages, returns=returns
        )
        return rollout, stats

    def _log_ratio_to_reference(self, histories: Histories, candidates: Tensor | None, slates: Tensor) -> Tensor:
        """Log p_policy - log p_reference of every slot, without dropout, (b, k)."""
        support = self.policy.support(histories, candidates)
        self.policy.train(False)
        ours, theirs = (
            policy.log_probs(histories, support, slates.unsqueeze(1), temperature=self.params.temperature).log_probs
            for policy in (self.policy, self.reference)
        )
        return (ours - theirs)[:, 0]

    def _whiten_over_processes(self, advantages: Tensor, live: Tensor) -> Tensor:
        gathered, mask = self.accelerator.gather((advantages, live))
        rank = self.accelerator.process_index
        return whiten(gathered, mask)[rank * len(advantages) : (rank + 1) * len(advantages)]

    def _mean_over_processes(self, stats: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return stats
        values = torch.tensor(list(stats.values()), dtype=torch.float64, device=self.accelerator.device)
        means = self.accelerator.gather(values.unsqueeze(0)).mean(0).tolist()
        return dict(zip(stats, means, strict=True))

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
            output.log_probs[:, 0], part.old_log_probs, part.advantages, part.live, clip_range=params.clip_range
        )
        value_loss = clipped_value_loss(
            values, part.old_values, part.returns, part.live, clip_range=params.clip_range_value
        )
        entropy = masked_mean(output.entropy[:, 0], part.live)
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

    # --- checkpoints ------------------------------------------------------------------------------

    def _save(self, step: int) -> None:
        folder = self.checkpoints / f"checkpoint-{step}"
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            (folder / "ppo.json").write_text(json.dumps({"step": step, "kl_coef": self.kl_control.value}))
        self.accelerator.wait_for_everyone()
        self.monitor.save_state(folder)
        keep_only(self.checkpoints, folder)

    def _resume(self, digest: str) -> int:
        folder = latest_checkpoint(self.checkpoints, digest)
        if folder is None:
            return 0
        self.accelerator.load_state(str(folder))
        state = json.loads((folder / "ppo.json").read_text())
        self.kl_control.value = state["kl_coef"]
        self.monitor.load_state(folder)
        return int(state["step"])


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run under a seed of its own and restore the random state after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
