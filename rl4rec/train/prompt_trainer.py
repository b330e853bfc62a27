"""The frame of a training loop over RL's prompts, on accelerate: steps, log rows, validations, exact resuming."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from rl4rec._console import Progress
from rl4rec.data.dataset import PreparedData
from rl4rec.model.batch import Histories
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import PPOParams, RLParams, UpdateParams
from rl4rec.train.checkpoints import latest_checkpoint, load_state, save_state, seal
from rl4rec.train.monitor import Monitor, peak_memory_mb
from rl4rec.train.token_prompts import prompts_of
from rl4rec.train.trainable import set_dropout, set_trainable


class PromptTensors(NamedTuple):
    """One process's prompts of a step, on its device."""

    histories: Histories  # b prompts
    targets: Tensor  # (b,)
    seeds: Tensor  # (b,)


class PromptTrainer(ABC):
    """Base of the trainers that are the project's own.

    A subclass builds its model, calls `prepare` and implements `train_step`.

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts, see `prompts_of`.
        rl: the `rl` section.
        section: the algorithm's own part of it.
        monitor: takes log rows and validations.
        checkpoints: folder for resuming an interrupted run.
        leave_out: item embeddings that have not seen the prompts' targets (`rl.crossfit`).
        accelerator: of this run.
    """

    name: str  # of the progress bar
    unit: str  # what a step consumes, for its rate

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        section: UpdateParams,
        monitor: Monitor,
        checkpoints: Path,
        *,
        leave_out: LeaveOutEmbeddings | None,
        accelerator: Accelerator,
    ) -> None:
        self.rl, self.accelerator = rl, accelerator
        self._policy, self._section, self._monitor, self._checkpoints = policy, section, monitor, checkpoints
        set_trainable(policy, rl.trainable, rl.lora)
        set_dropout(policy, rl.dropout)
        policy.leave_out = None if leave_out is None else leave_out.to(accelerator.device)
        self.prompts = prompts_of(data, rl, policy, seed=section.seed)

    def prepare(
        self, model: nn.Module, value_head: nn.Module | None, *, total_steps: int, samples_per_step: int
    ) -> None:
        """Optimizer and schedule of what is trainable in `model`; samples are counted over all processes."""
        section, policy = self._section, self._policy
        groups = [{"params": [p for p in policy.parameters() if p.requires_grad], "lr": section.learning_rate}]
        if value_head is not None:
            assert isinstance(section, PPOParams)
            groups.append({"params": list(value_head.parameters()), "lr": section.value_learning_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=self.rl.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = get_scheduler(section.lr_scheduler, optimizer, 0, total_steps)
        self.total_steps, self.samples_per_step = total_steps, samples_per_step

    @property
    def policy(self) -> SlatePolicy:
        """The policy in training."""
        return self._policy

    @abstractmethod
    def train_step(self, step: int, *, logged: bool) -> dict[str, float]:
        """Make one step and return its numbers; `logged`: a log row follows, with what is measured for it only."""

    def state(self) -> dict[str, float]:
        """What a subclass keeps between steps besides weights, optimizer and schedule."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: B027 - nothing to take back by default
        """Take back what `state` returned."""

    def read_prompts(self, visits: int, per_process: int) -> PromptTensors:
        """This process's share of the prompts from visit number `visits` on.

        In turns, so that the n-th mini-batches of all processes are the n-th one of a single process.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batch = self.prompts.visit(visits, per_process * world).share(rank, world)
        device = self.policy.device
        seeds = torch.from_numpy(batch.seeds).to(device)
        tables = None if self.policy.leave_out is None else self.policy.leave_out.of_seeds(seeds)
        histories = self.policy.pad_histories(batch.histories)._replace(tables=tables)
        return PromptTensors(histories, torch.from_numpy(batch.targets).to(device), seeds)

    def train(self, *, digest: str) -> None:
        """Run all steps, or those that are left after an interruption of the run that `digest` identifies."""
        step, monitor = self._resume(digest), self._monitor
        if step == 0:
            monitor.validate(self.policy, step=0, samples=0, candidate=False)
        with Progress(self.name, total=self.total_steps, initial=step, unit="step") as progress:
            step = self._run_steps(step, progress)
        monitor.finish(step=step, samples=step * self.samples_per_step)
        self.accelerator.wait_for_everyone()  # nobody may still be writing when the caller cleans up

    def _run_steps(self, step: int, progress: Progress) -> int:
        """All steps from number `step` on; the number after the last."""
        monitor = self._monitor
        window: dict[str, list[float]] = defaultdict(list)
        logged_at, logged_step = monitor.seconds, step
        while step < self.total_steps:
            logged = (step + 1) % self.rl.logging_steps == 0
            for name, value in self._mean_over_processes(self.train_step(step, logged=logged)).items():
                window[name].append(value)
            self.scheduler.step()
            step += 1
            progress.update()
            samples = step * self.samples_per_step
            if logged or step == self.total_steps:
                row = {f"train/{name}": sum(values) / len(values) for name, values in window.items()}
                row["train/learning_rate"] = self.scheduler.get_last_lr()[0]
                seconds = max(monitor.seconds - logged_at, 1e-9)
                row[f"train/{self.unit}_per_second"] = (step - logged_step) * self.samples_per_step / seconds
                row["train/peak_memory_mb"] = peak_memory_mb()
                monitor.log(row, step=step, samples=samples)
                window.clear()
                logged_at, logged_step = monitor.seconds, step
            if step % self.rl.eval_every == 0 or step == self.total_steps:
                monitor.validate(self.policy, step=step, samples=samples)
                self._save(step)
        return step

    def _mean_over_processes(self, stats: dict[str, float]) -> dict[str, float]:
        if self.accelerator.num_processes == 1:
            return stats
        values = torch.tensor(list(stats.values()), dtype=torch.float64, device=self.accelerator.device)
        means = self.accelerator.gather(values.unsqueeze(0)).mean(0).tolist()
        return dict(zip(stats, means, strict=True))

    def _save(self, step: int) -> None:
        folder = self._checkpoints / f"checkpoint-{step}"
        save_state(folder, *self._trained, rank=self.accelerator.process_index)
        if self.accelerator.is_main_process:
            (folder / "step.json").write_text(json.dumps({"step": step, **self.state()}))
            self._monitor.save_state(folder, self.policy, step=step)
        self.accelerator.wait_for_everyone()  # each process writes its random generators
        seal(folder)

    def _resume(self, digest: str) -> int:
        folder = latest_checkpoint(self._checkpoints, digest)
        if folder is None:
            return 0
        load_state(folder, *self._trained, rank=self.accelerator.process_index)
        state = json.loads((folder / "step.json").read_text())
        self.load_state(state)
        self._monitor.load_state(folder)
        return int(state["step"])

    @property
    def _trained(self) -> tuple[nn.Module, torch.optim.Optimizer, object]:
        return self.accelerator.unwrap_model(self.model), self.optimizer, self.scheduler
