"""The sceptic's control: RL's prompts, RL's weights and GRPO's number of updates, spent on cross-entropy.

Whatever GRPO gains beyond this, it gains by its objective and not by seeing the same feedback once more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import get_scheduler

from rl4rec.data.prepared import PreparedData
from rl4rec.leave_out import LeaveOutEmbeddings
from rl4rec.params import RLParams
from rl4rec.policy import SlatePolicy, SlatePolicyOutput
from rl4rec.support import Histories
from rl4rec.trainers.checkpoints import keep_only, latest_checkpoint
from rl4rec.trainers.monitor import Monitor, peak_memory_mb
from rl4rec.trainers.token_prompts import prompts_of
from rl4rec.trainers.trainable import set_dropout, set_trainable
from rl4rec.trainers.updates import grpo_steps


class ContinuedSFTTrainer:
    """Cross-entropy of each prompt's target over the whole catalogue (less the seen items).

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts, see `prompts_of`.
        rl: the `rl` section; batches are GRPO's prompts a step.
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
        self.rl, self.params, self.monitor, self.checkpoints = rl, rl.sft_continued, monitor, checkpoints
        self.accelerator = Accelerator()
        set_trainable(policy, rl.trainable, rl.lora)
        set_dropout(policy, rl.dropout)
        self.prompts = prompts_of(data, rl, policy, seed=self.params.seed)
        world = self.accelerator.num_processes
        self.local_batch = rl.grpo.batch_size * rl.grpo.gradient_accumulation_steps
        self.total_steps = grpo_steps(rl, rl.grpo, prompts=len(self.prompts), world=world)
        weights = [p for p in policy.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=self.params.learning_rate, weight_decay=rl.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(policy, optimizer)
        if leave_out is not None:
            policy.leave_out = leave_out.to(self.accelerator.device)
        self.scheduler = get_scheduler(self.params.lr_scheduler, optimizer, 0, self.total_steps)
        self.accelerator.register_for_checkpointing(self.scheduler)

    @property
    def policy(self) -> SlatePolicy:
        """The policy in training."""
        policy: SlatePolicy = self.accelerator.unwrap_model(self.model)
        return policy

    def train(self, *, digest: str) -> None:
        """Run all steps, or those that are left after an interruption of the run that `digest` identifies."""
        step = self._resume(digest)
        batch = self.local_batch * self.accelerator.num_processes
        if step == 0:
            self.monitor.validate(self.policy, step=0, samples=0, candidate=False)
        bar = tqdm(total=self.total_steps, initial=step, desc="sft", unit="step", disable=not sys.stderr.isatty())
        while step < self.total_steps:
            loss, norm = self._update(step)
            step += 1
            bar.update()
            if step % self.rl.logging_steps == 0 or step == self.total_steps:
                row = {"train/loss": loss, "train/grad_norm": norm, "train/peak_memory_mb": peak_memory_mb()}
                row["train/learning_rate"] = self.scheduler.get_last_lr()[0]
                self.monitor.log(row, step=step, samples=step * batch)
            if step % self.rl.eval_every == 0 or step == self.total_steps:
                self.monitor.validate(self.policy, step=step, samples=step * batch)
                self._save(step)
        bar.close()
        self.monitor.finish(step=step, samples=step * batch)
        self.accelerator.wait_for_everyone()  # nobody may still be writing when the caller cleans up

    def _update(self, step: int) -> tuple[float, float]:
        """One step; the loss and the norm of its gradient."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        rollout = step // self.rl.grpo.num_iterations  # GRPO uses its prompts that often
        batch = self.prompts.visit(rollout * world * self.local_batch, world * self.local_batch).share(rank, world)
        policy = self.policy
        histories: Histories = policy.pad_histories(batch.histories)
        if policy.leave_out is not None:
            seeds = torch.from_numpy(batch.seeds).to(policy.device)
            histories = histories._replace(tables=policy.leave_out.of_seeds(seeds))
        self.model.train(self.rl.dropout)
        output: SlatePolicyOutput = self.model(
            histories=histories, targets=torch.from_numpy(batch.targets).to(policy.device)
        )
        assert output.target_loss is not None
        self.accelerator.backward(output.target_loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step()
        return self.accelerator.gather(output.target_loss.detach()).mean().item(), float(norm)

    def _save(self, step: int) -> None:
        folder = self.checkpoints / f"checkpoint-{step}"
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            (folder / "step.json").write_text(json.dumps({"step": step}))
        self.accelerator.wait_for_everyone()
        self.monitor.save_state(folder)
        keep_only(self.checkpoints, folder)

    def _resume(self, digest: str) -> int:
        folder = latest_checkpoint(self.checkpoints, digest)
        if folder is None:
            return 0
        self.accelerator.load_state(str(folder))
        self.monitor.load_state(folder)
        return int(json.loads((folder / "step.json").read_text())["step"])
