"""The frame of all trainings: steps, log rows, validations, exact resuming; one or several processes.

A trainer builds its optimizer with `prepare` and implements `train_step`. Gradients are averaged over the processes by
hand after each backward pass: no wrapper stands between a trainer and its policy.
"""

from __future__ import annotations

import copy
import json
import logging
import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from rl4rec._console import Progress
from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.metrics import slate_hits
from rl4rec.model.batch import Histories, States
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.device import say_device, to_device
from rl4rec.model.policy import SlatePolicy
from rl4rec.model.sharding import is_sharded_tensor, shard, wants_sharding, whole
from rl4rec.params import PPOParams, RLParams, RolloutParams, UpdateParams
from rl4rec.train.candidates import CandidateRule
from rl4rec.train.checkpoints import common_checkpoint, load_state, save_state, seal
from rl4rec.train.log import RunLog, peak_memory_mb
from rl4rec.train.precision import choose_precision
from rl4rec.train.prompts import Prompts, PromptSet
from rl4rec.train.trainable import frozen_copy, set_trainable

logger = logging.getLogger(__name__)

Stats = dict[str, float | Tensor]
"""Numbers of a step by name; tensors of one element are read when a row is logged, not before."""


class Trainer(ABC):
    """Base of all trainers.

    Args:
        policy: trained in place, on the accelerator where there is one.
        run: takes log rows and validations.
        eval_every: steps between validations; the last step is always validated.
        logging_steps: steps between log rows.
        precision: `sft.precision` or `rl.precision`.
    """

    name: str  # of the progress bar
    unit: str  # what a step consumes, for its rate: samples, unless a step reports a number of that name

    validate_start = True  # whether the curve begins with the policy as it came

    def __init__(
        self, policy: SlatePolicy, run: RunLog, *, eval_every: int, logging_steps: int, precision: str
    ) -> None:
        self.accelerator = Accelerator()
        say_device(self.accelerator.device)
        self._whole: SlatePolicy | None = None
        if wants_sharding() and self.accelerator.num_processes > 1:
            self._whole = copy.deepcopy(policy)  # on the host, for the result
        self.place(policy)
        self.precision = choose_precision(
            precision, self.accelerator.device, width=policy.get_input_embeddings().get_parameter("weight").shape[1]
        )
        self.policy, self.run = policy, run
        self._eval_every, self._logging_steps = eval_every, logging_steps

    def place(self, policy: SlatePolicy) -> None:
        """Move a policy to the device; with `RL4REC_SHARD` each process gets its part of the blocks."""
        if self._whole is not None:
            shard(policy, self.accelerator.device, self.accelerator.num_processes)
        nn.Module.to(policy, self.accelerator.device)

    def prepare(
        self,
        section: UpdateParams,
        *,
        weight_decay: float,
        total_steps: int,
        samples_per_step: int,
        betas: tuple[float, float] = (0.9, 0.999),
        warmup_steps: int = 0,
        value_head: nn.Module | None = None,
    ) -> None:
        """Make optimizer and schedule for what is trainable."""
        groups = decay_groups(self.policy.named_parameters(), section.learning_rate, weight_decay)
        self.modules = nn.ModuleDict({"policy": self.policy})
        if value_head is not None:
            assert isinstance(section, PPOParams)
            self.modules["value_head"] = nn.Module.to(value_head, self.accelerator.device)
            groups += decay_groups(value_head.named_parameters(), section.value_learning_rate, weight_decay)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, fused=self.accelerator.device.type == "cuda")
        self.schedule = get_scheduler(section.lr_scheduler, self.optimizer, warmup_steps, total_steps)
        self.total_steps, self.samples_per_step = total_steps, samples_per_step
        self._max_grad_norm = section.max_grad_norm

    @abstractmethod
    def train_step(self, step: int, *, logged: bool) -> Stats:
        """Make one step and return its numbers; `logged`: a log row follows, with what is measured for it only."""

    def state(self) -> dict[str, float]:
        """What a trainer keeps between steps besides weights, optimizer and schedule."""
        return {}

    def load_state(self, state: dict[str, float]) -> None:  # noqa: B027 - nothing to take back by default
        """Take back what `state` returned."""

    def encode(self, policy: SlatePolicy, histories: Histories) -> States:
        """States of histories, read in the training's precision."""
        with self.precision.reading():
            return policy.encode(histories)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those of the step."""
        with self.precision.gradients():
            loss.backward()  # type: ignore[no-untyped-call]

    def read_nothing(self) -> Tensor:
        """A loss of 0 from a reading, where this process has nothing to read: with sharding the others wait for it."""
        return 0.0 * self.encode(self.policy, self.policy.pad_histories([np.zeros(1, np.int64)])).vectors.sum()

    def gather_rows(self, rows: Tensor, total: int) -> Tensor:
        """What each process has of `total` rows, taking turns (its own are every n-th), in the order of all of them."""
        processes = self.accelerator.num_processes
        if processes == 1:
            return rows
        longest = math.ceil(total / processes)
        padded = torch.nn.functional.pad(rows, [0, 0] * (rows.dim() - 1) + [0, longest - len(rows)])
        everywhere: Tensor = self.accelerator.gather(padded.contiguous())
        return everywhere.view(processes, longest, *rows.shape[1:]).transpose(0, 1).flatten(0, 1)[:total]

    def update(self) -> Tensor:
        """Move the weights along the gradients that backward passes have left; the norm of the gradients."""
        weights = [weight for weight in self.modules.parameters() if weight.requires_grad]
        spread_out = [weight for weight in weights if is_sharded_tensor(weight)]  # averaged by the backward pass
        kept_whole = [weight for weight in weights if not is_sharded_tensor(weight)]
        if self.accelerator.num_processes > 1:
            for weight in kept_whole:
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = self.accelerator.reduce(gradient, "mean")
        if spread_out:
            norm = _clip(kept_whole, spread_out, self._max_grad_norm)
        else:
            norm = nn.utils.clip_grad_norm_(weights, self._max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def train(self, *, checkpoints: Path | None = None, digest: str = "") -> None:
        """Run all steps, or those that are left after an interruption of the run that `digest` identifies.

        Args:
            checkpoints: folder for resuming an interrupted run; None: it cannot be resumed.
            digest: of all that the result depends on; only this run's own checkpoints are used.
        """
        step = self._resume(checkpoints, digest)
        if step == 0 and self.validate_start:
            self.run.validate(self.policy, step=0, samples=0, candidate=False)
        with Progress(self.name, total=self.total_steps, initial=step, unit="step") as progress:
            step = self._run_steps(step, progress, checkpoints)
        self.run.finish(self.policy, step=step, samples=step * self.samples_per_step)
        if self._whole is not None:
            self._whole.load_state_dict({name: whole(value).cpu() for name, value in self.policy.state_dict().items()})
            self.policy = self._whole
        self.accelerator.wait_for_everyone()  # nobody may still be writing when the caller cleans up

    def _run_steps(self, step: int, progress: Progress, checkpoints: Path | None) -> int:
        """All steps from number `step` on; the number after the last."""
        window: dict[str, list[float | Tensor]] = defaultdict(list)
        logged_at, logged_step, stop = self.run.seconds, step, False
        while step < self.total_steps and not stop:
            logged = (step + 1) % self._logging_steps == 0
            for name, value in self.train_step(step, logged=logged).items():
                window[name].append(value)
            learning_rate = self.schedule.get_last_lr()[0]
            self.schedule.step()
            step += 1
            progress.update()
            samples = step * self.samples_per_step
            if logged or step == self.total_steps:
                means = self._means(window)
                consumed = means.pop(self.unit, self.samples_per_step) * (step - logged_step)
                row = {f"train/{name}": value for name, value in means.items()}
                row["train/learning_rate"] = learning_rate
                row[f"train/{self.unit}_per_second"] = consumed / max(self.run.seconds - logged_at, 1e-9)
                row["train/peak_memory_mb"] = peak_memory_mb()
                self.run.log(row, step=step, samples=samples)
                window.clear()
                logged_at, logged_step = self.run.seconds, step
            if step % self._eval_every == 0 or step == self.total_steps:
                stop = self.run.validate(self.policy, step=step, samples=samples)
                if checkpoints is not None:
                    self._save(checkpoints / f"checkpoint-{step}", step)
        return step

    def _means(self, window: dict[str, list[float | Tensor]]) -> dict[str, float]:
        """The mean of each number over the window, and over the processes; tensors are read from the device at once."""
        columns = [
            torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values]).mean()
            for _, values in sorted(window.items())
        ]
        together = torch.stack([to_device(column, self.accelerator.device) for column in columns])
        means: Tensor = self.accelerator.reduce(together, "mean")
        return dict(zip(sorted(window), means.tolist(), strict=True))

    def _save(self, folder: Path, step: int) -> None:
        save_state(folder, self.modules, self.optimizer, self.schedule, rank=self.accelerator.process_index)
        if self.accelerator.is_main_process:
            (folder / "step.json").write_text(json.dumps({"step": step, **self.state()}))
        self.run.save_state(folder, self.policy, step=step)
        self.accelerator.wait_for_everyone()  # each process writes its random generators
        seal(folder)

    def _resume(self, checkpoints: Path | None, digest: str) -> int:
        folder = None if checkpoints is None else common_checkpoint(checkpoints, digest, self.accelerator)
        if folder is None:
            return 0
        load_state(folder, self.modules, self.optimizer, self.schedule, rank=self.accelerator.process_index)
        state = json.loads((folder / "step.json").read_text())
        self.load_state(state)
        self.run.load_state(folder)
        return int(state["step"])


class PromptTrainer(Trainer):
    """Base of the trainers on RL's prompts.

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts.
        rl: the `rl` section.
        section: the algorithm's own part of it.
        run: takes log rows and validations.
        crossfit: item embeddings that have not seen the prompts' targets (`rl.crossfit`).
        prompts_per_step: of all processes together.

    Raises:
        UserError: there are more processes than prompts per step.
    """

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        section: UpdateParams,
        run: RunLog,
        *,
        crossfit: CrossfitEmbeddings | None,
        prompts_per_step: int,
    ) -> None:
        policy.train(False)  # slates and log-probabilities come from one distribution: no dropout
        reference = frozen_copy(policy)
        set_trainable(policy, rl.trainable, rl.lora)
        super().__init__(policy, run, eval_every=rl.eval_every, logging_steps=rl.logging_steps, precision=rl.precision)
        self.place(reference)
        if self.accelerator.num_processes > prompts_per_step:
            raise UserError(
                f"{self.accelerator.num_processes} processes share the {prompts_per_step} prompts of a step: raise "
                f"rl.{self.name}.batch_size, or start fewer (RL4REC_PROCESSES)"
            )
        self.reference, self.rl, self.prompts_per_step = reference, rl, prompts_per_step
        self.crossfit = None if crossfit is None else crossfit.to(self.accelerator.device)
        self.candidates = CandidateRule(
            rl.candidates, torch.from_numpy(data.item_counts), exclude_seen=policy.config.mask_seen
        )
        self.prompts = PromptSet(
            data,
            max_history=policy.config.max_history,
            seed=section.seed,
            mask_seen=policy.config.mask_seen,
            latest=rl.feedback == "latest",
            split_points=rl.crossfit.split_points,
        )

    def count_steps(self, params: RolloutParams) -> int:
        """Steps, one rollout each: `max_steps`, or `num_epochs` over the prompts, or the budget of slates."""
        return self.rl.count_steps(params, prompts=len(self.prompts))

    def read_prompts(self, step: int) -> Prompts:
        """This process's prompts of a step, with their candidates, on its device.

        Processes take turns, so that together they have the prompts of a single process.
        """
        batch = self.prompts.visit(step * self.prompts_per_step, self.prompts_per_step)
        mine = batch.share(self.accelerator.process_index, self.accelerator.num_processes)
        return mine.to_tensors(self.policy, self.crossfit, self.candidates)

    def share(self, prompts: Prompts, total: int) -> float:
        """What makes the mean over some of a process's prompts a part of the mean over all `total` of the processes.

        Numbers and gradients are averaged over the processes, whose prompts need not be equally many.
        """
        processes: int = self.accelerator.num_processes
        return len(prompts) * processes / total


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float
) -> list[dict[str, object]]:
    """AdamW's parameter groups: matrices decay, biases and the scales of normalisations do not (as in transformers).

    Weights that are spread over the processes have groups of their own: one update moves tensors of one kind.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for _, weight in named:
        if weight.requires_grad:
            groups.setdefault((is_sharded_tensor(weight), weight.dim() <= 1), []).append(weight)
    return [
        {"params": groups[key], "lr": learning_rate, "weight_decay": 0.0 if key[1] else weight_decay}
        for key in sorted(groups)
    ]


def _clip(kept_whole: list[nn.Parameter], spread_out: list[nn.Parameter], most: float) -> Tensor:
    """Clip the gradients of weights of both kinds by the norm over all of them, which is returned."""
    gradients = [[weight.grad for weight in each if weight.grad is not None] for each in (kept_whole, spread_out)]
    norm: Tensor = torch.linalg.vector_norm(
        torch.stack([whole(nn.utils.get_total_norm(each)) for each in gradients if each])
    )
    factor = min(1.0, most / (norm.item() + 1e-6))
    for gradient in (gradient for each in gradients for gradient in each):
        gradient.mul_(factor)
    return norm


def reward_stats(slates: Tensor, targets: Tensor, gains: Tensor, *, share: float = 1.0) -> Stats:
    """Mean reward and share of hits of slates (b, g, k) with gains (b, g, k), as every RL algorithm logs them."""
    hits = slate_hits(slates, targets.unsqueeze(1)).double().mean()
    return {"reward": share * gains.sum(-1).mean(), "hit_share": share * hits}
