"""How many optimizer steps an algorithm makes."""

from __future__ import annotations

from rl4rec.params import GRPOParams, PPOParams, RLParams


def rollout_batches(rl: RLParams, params: GRPOParams | PPOParams, *, prompts: int, world: int = 1) -> int:
    """Batches of slates: from `num_epochs` over the prompts, or the budget of slates."""
    slates = rl.num_slates
    if params.num_epochs is not None:
        slates = round(params.num_epochs * prompts) * params.num_sample_generations
    return max(1, round(slates / (params.slates_per_step * world)))


def grpo_steps(rl: RLParams, params: GRPOParams, *, prompts: int, world: int = 1) -> int:
    """Optimizer steps, `num_iterations` for a batch of slates, unless `max_steps` is set."""
    if params.max_steps is not None:
        return params.max_steps
    return rollout_batches(rl, params, prompts=prompts, world=world) * params.num_iterations


def ppo_steps(rl: RLParams, params: PPOParams, *, prompts: int, world: int = 1) -> int:
    """Steps, one batch of slates each, unless `max_steps` is set."""
    if params.max_steps is not None:
        return params.max_steps
    return rollout_batches(rl, params, prompts=prompts, world=world)
