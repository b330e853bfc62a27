"""The sceptic's control: RL's prompts, RL's weights and GRPO's number of updates, spent on cross-entropy.

Whatever GRPO gains beyond this, it gains by its objective and not by seeing the same feedback once more.
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from rl4rec.data.dataset import PreparedData
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.policy import SlatePolicy, SlatePolicyOutput
from rl4rec.params import RLParams
from rl4rec.train.monitor import Monitor
from rl4rec.train.prompt_trainer import PromptTrainer
from rl4rec.train.updates import grpo_steps


class ContinuedSFTTrainer(PromptTrainer):
    """Cross-entropy of each prompt's target over the whole catalogue (less the seen items).

    Batches are GRPO's prompts of a step. Arguments as of `PromptTrainer`.
    """

    name, unit = "sft_continued", "prompts"

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        monitor: Monitor,
        checkpoints: Path,
        *,
        leave_out: LeaveOutEmbeddings | None = None,
    ) -> None:
        super().__init__(
            policy, data, rl, rl.sft_continued, monitor, checkpoints, leave_out=leave_out, accelerator=Accelerator()
        )
        world = self.accelerator.num_processes
        self.local_batch = rl.grpo.batch_size * rl.grpo.gradient_accumulation_steps
        self.prepare(
            policy,
            None,
            total_steps=grpo_steps(rl, rl.grpo, prompts=len(self.prompts), world=world),
            samples_per_step=self.local_batch * world,
        )

    def train_step(self, step: int, *, logged: bool) -> dict[str, float]:
        """One update; the loss and the norm of its gradient."""
        rollout = step // self.rl.grpo.num_iterations  # GRPO uses its prompts that often
        prompts = self.read_prompts(rollout * self.samples_per_step, self.local_batch)
        self.model.train(self.rl.dropout)
        output: SlatePolicyOutput = self.model(histories=prompts.histories, targets=prompts.targets)
        assert output.target_loss is not None
        self.accelerator.backward(output.target_loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.rl.sft_continued.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": output.target_loss.item(), "grad_norm": float(norm)}
