"""GRPO on TRL's GRPOTrainer (Shao et al. 2024; TRL 1.16).

Deviations from running TRL as it comes, and why:

- Rollouts go through the policy's own `generate`: one forward pass for all slates of a prompt.
- One override, `_get_per_token_logps_and_entropies`. TRL's fused head gives log-probabilities over the *whole*
  vocabulary, one forward pass a row; a slate is drawn without replacement from a masked support, so these would bias
  the ratio. Ours returns Plackett-Luce log-probabilities on the very support that was sampled from.
- The supervised term (`sft_coef`) travels in TRL's slot for an auxiliary loss.
- `beta` and the reference policy are set after construction: TRL would load the reference from a path as a plain LM.

`tests/train/test_grpo.py` pins what this file relies on in TRL 1.16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from rl4rec._process import refuse_data_parallel
from rl4rec.data.dataset import PreparedData
from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
from rl4rec.model.policy import SlatePolicy, SlatePolicyOutput
from rl4rec.params import GRPOParams, RLParams
from rl4rec.train.callback import MonitorCallback
from rl4rec.train.checkpoints import SafeCheckpoints, latest_checkpoint
from rl4rec.train.losses import kl_estimate
from rl4rec.train.monitor import Monitor, peak_memory_mb
from rl4rec.train.rewards import GainsFunction, Reward, make_reward
from rl4rec.train.token_prompts import (
    CandidateRule,
    TokenPromptPolicy,
    place_in_group,
    prompt_texts,
    prompts_of,
    read_prompts,
)
from rl4rec.train.trainable import frozen_copy, set_dropout, set_trainable
from rl4rec.train.updates import grpo_steps

_RENAMED = {
    "loss": "train/loss",
    "reward": "train/reward",
    "hit_share": "train/hit_share",
    "frac_reward_zero_std": "train/no_signal_share",
    "kl": "train/kl",
    "entropy": "train/entropy",
    "clip_ratio/region_mean": "train/clip_fraction",
    "cispo_clip_ratio": "train/clip_fraction",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "aux_loss": "train/target_loss",
}


def train_grpo(
    sft_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    rl: RLParams,
    monitor: Monitor,
    *,
    checkpoints: Path,
    digest: str,
    leave_out: LeaveOutEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
) -> None:
    """Fine-tune the SFT policy; the one to keep is in the monitor's folder.

    Args:
        sft_folder: the warm start.
        tokenizer: of the policy's vocabulary.
        data: source of the prompts, see `prompts_of`.
        rl: the `rl` section.
        monitor: takes log rows and validations.
        checkpoints: folder for resuming an interrupted run.
        digest: identifies the run; only its own checkpoints are resumed.
        leave_out: item embeddings that have not seen the prompts' targets (`rl.crossfit`).
        own_reward: the function behind `reward_type: custom`.
    """
    trainer = build_grpo(
        sft_folder,
        tokenizer,
        data,
        rl,
        monitor,
        checkpoints=checkpoints,
        leave_out=leave_out,
        own_reward=own_reward,
    )
    resume = latest_checkpoint(checkpoints, digest)
    if resume is not None:
        monitor.load_state(resume)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.accelerator.wait_for_everyone()  # nobody may still be writing when the caller cleans up


def build_grpo(
    sft_folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: PreparedData,
    rl: RLParams,
    monitor: Monitor,
    *,
    checkpoints: Path,
    leave_out: LeaveOutEmbeddings | None = None,
    own_reward: GainsFunction | None = None,
) -> SlateGRPOTrainer:
    """The trainer of `train_grpo`, ready to start."""
    params, reward = rl.grpo, make_reward(rl, data, own_reward)
    policy = TokenPromptPolicy.from_pretrained(sft_folder)
    policy.rule = CandidateRule(rl.candidates, torch.from_numpy(data.item_counts), exclude_seen=policy.config.mask_seen)
    policy.temperature, policy.slate_length = params.temperature, rl.k
    reference = frozen_copy(policy)
    set_trainable(policy, rl.trainable, rl.lora)
    # TRL takes old and new log-probabilities under different dropout masks: with more than one update a rollout
    # their ratio would be noise.
    dropout = rl.dropout and params.num_iterations == 1
    set_dropout(policy, dropout)

    prompts = prompts_of(data, rl, policy, seed=params.seed)
    arguments = _arguments(rl, params, checkpoints, prompts=len(prompts))
    refuse_data_parallel(arguments.n_gpu)
    rollouts = -(-arguments.max_steps // params.num_iterations)
    count = rollouts * params.batch_size * params.gradient_accumulation_steps * arguments.world_size
    batch = prompts.visit(0, count)
    dataset = Dataset.from_dict({"prompt": prompt_texts(batch, tokenizer, policy), "target": batch.targets.tolist()})
    trainer = SlateGRPOTrainer(
        model=policy,
        reward_funcs=[trl_reward(reward, item_offset=policy.config.item_offset)],
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.use_reference(reference, kl_coef=params.kl_coef, dropout=dropout)
    if leave_out is not None:
        policy.leave_out = reference.leave_out = leave_out.to(trainer.accelerator.device)
    trainer.use_supervised_term(rl.sft_coef)
    trainer.slates_per_step = params.slates_per_step * arguments.world_size / params.num_iterations
    trainer.remove_callback(PrinterCallback)  # the monitor has the numbers
    trainer.add_callback(
        MonitorCallback(
            monitor,
            policy,
            checkpoints,
            rename=trainer.rename,
            every=rl.eval_every,
            samples_per_step=trainer.slates_per_step,
            name="grpo",
            validate_start=True,
        )
    )
    return trainer


def trl_reward(reward: Reward, *, item_offset: int) -> Callable[..., list[float | None]]:
    """TRL reward function: the reward of each slate, from its token ids and the `target` column."""

    def of_completions(
        completion_ids: list[list[int]], target: list[int], log_metric: Callable[[str, float], None], **_: Any
    ) -> list[float | None]:
        slates = torch.tensor(completion_ids) - item_offset  # (n, k)
        targets = torch.tensor(target)
        gains = reward(slates, targets)
        log_metric("hit_share", (slates == targets.unsqueeze(1)).any(1).double().mean().item())
        values: list[float | None] = gains.sum(-1).tolist()
        return values

    return of_completions


class SlateGRPOTrainer(SafeCheckpoints, GRPOTrainer):
    """GRPOTrainer whose log-probabilities are those of slates on their masked support."""

    slates_per_step = 0.0
    _reference: SlatePolicy | None = None
    _dropout = False

    def use_reference(self, reference: SlatePolicy, *, kl_coef: float, dropout: bool) -> None:
        """Measure (and with `kl_coef` above 0, penalise) the KL divergence to `reference`.

        `dropout` says whether updates keep the policy's own; the KL is measured without.
        """
        self._dropout = dropout
        self._reference = reference.to(self.accelerator.device)
        if kl_coef > 0:
            self.beta = kl_coef
            self.ref_model = self._reference

    def use_supervised_term(self, coefficient: float) -> None:
        """Add `coefficient` times the cross-entropy of the target on the candidates to the loss."""
        self.aux_loss_enabled = coefficient > 0
        self.router_aux_loss_coef = coefficient

    def rename(self, logs: Mapping[str, float], steps: int, seconds: float) -> dict[str, float]:
        """A log entry under our names; `steps` and `seconds` have passed since the last one."""
        row = {ours: logs[theirs] for theirs, ours in _RENAMED.items() if logs.get(theirs) is not None}
        row["train/slates_per_second"] = steps * self.slates_per_step / max(seconds, 1e-9)
        row["train/peak_memory_mb"] = peak_memory_mb()
        return row

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Per-slot log-probabilities and entropies (n, k) of the slates that follow the prompts (n, p)."""
        policy = self.accelerator.unwrap_model(self.model)
        prompts = read_prompts(input_ids[:, :-logits_to_keep], policy)
        slates = input_ids[:, -logits_to_keep:] - policy.config.item_offset  # (n, k)
        place = place_in_group(prompts.rows)
        # (b, g, k); a prompt with fewer slates than the largest group repeats one of its own
        first = torch.zeros_like(prompts.targets).scatter_(0, prompts.rows, torch.arange(len(slates)).to(slates.device))
        grouped = slates[first].unsqueeze(1).repeat(1, int(place.max()) + 1, 1)
        grouped[prompts.rows, place] = slates
        inputs = {
            "histories": prompts.histories,
            "candidates": policy.rule.candidates(prompts.histories, prompts.targets, prompts.seeds),
            "slates": grouped,
            "temperature": self.temperature,
        }
        output: SlatePolicyOutput = model(**inputs, targets=prompts.targets if compute_aux_loss else None)
        assert output.log_probs is not None and output.entropy is not None
        log_probs = output.log_probs[prompts.rows, place]
        if compute_entropy and self.beta == 0 and self._is_logging_step():
            self._measure_kl(policy, inputs, None if self._dropout else log_probs, prompts.rows, place)
        entropy = output.entropy[prompts.rows, place] if compute_entropy else None
        return log_probs, entropy, output.target_loss

    def _is_logging_step(self) -> bool:
        return (self.state.global_step + 1) % self.args.logging_steps == 0

    @torch.no_grad()
    def _measure_kl(
        self, policy: SlatePolicy, inputs: dict[str, Any], log_probs: Tensor | None, rows: Tensor, place: Tensor
    ) -> None:
        """Log the KL to the reference under TRL's name, which logs it only if it penalises it.

        `log_probs` (n, k) are the policy's own, None if they were taken under dropout and must be worked out anew.
        """
        assert self._reference is not None
        if log_probs is None:
            policy.train(False)
            log_probs = _log_probs(policy, inputs)[rows, place]
            policy.train()
        kl = kl_estimate(log_probs, _log_probs(self._reference, inputs)[rows, place]).mean()
        self._metrics["train"]["kl"].append(self.accelerator.gather(kl).mean().item())


def _log_probs(policy: SlatePolicy, inputs: dict[str, Any]) -> Tensor:
    """(b, g, k), past what TRL makes of `forward`."""
    log_probs = SlatePolicy.forward(policy, **inputs).log_probs
    assert log_probs is not None
    return log_probs


def _arguments(rl: RLParams, params: GRPOParams, folder: Path, *, prompts: int) -> GRPOConfig:
    """Every hyper-parameter explicit: TRL's defaults drift between releases."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": params.batch_size * params.num_sample_generations,
        "gradient_accumulation_steps": params.gradient_accumulation_steps,
        "num_generations": params.num_sample_generations,
        "num_iterations": params.num_iterations,
        "max_completion_length": rl.k,
        "temperature": params.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "beta": 0.0,
        "epsilon": params.clip_range,
        "epsilon_high": params.clip_range_high,
        "loss_type": params.loss_type,
        "scale_rewards": params.scale_rewards,
        "importance_sampling_level": "token",
        "entropy_coef": params.entropy_coef,
        "mask_truncated_completions": False,
        "use_vllm": False,
        "disable_dropout": False,  # the trainer's own `rl.dropout` decides, see `set_dropout`
        "shuffle_dataset": False,  # the prompts come in the order of `PromptSet`
        "learning_rate": params.learning_rate,
        "weight_decay": rl.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "optim": "adamw_torch",
        "lr_scheduler_type": params.lr_scheduler,
        "warmup_steps": 0,
        "max_grad_norm": params.max_grad_norm,
        "logging_steps": rl.logging_steps,
        "logging_nan_inf_filter": False,
        "log_completions": False,
        "save_strategy": "steps",
        # TRL forgets a rollout that is still in use: save only between rollouts, so that resuming is exact
        "save_steps": -(-rl.eval_every // params.num_iterations) * params.num_iterations,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,  # MonitorCallback has the progress
        "seed": params.seed,
        "data_seed": params.seed,
        "bf16": False,
        "fp16": False,
        "activation_checkpointing": False,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    world = GRPOConfig(**settings, max_steps=1).world_size
    return GRPOConfig(**settings, max_steps=grpo_steps(rl, params, prompts=prompts, world=world))
