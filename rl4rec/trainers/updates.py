"""How many optimizer steps an algorithm makes."""

from __future__ import annotations

from rl4rec.params import GRPOParams, PPOParams, RLParams


def grpo_steps(rl: RLParams, params: GRPOParams, *, prompts: int, world: int = 1) -> int:
    """Optimizer steps: `max_steps`, else `num_epochs` over the prompts, else the budget of slates."""
    if params.max_steps is not None:
        return params.max_steps
    per_step = params.slates_per_step * world
    slates = rl.num_slates
    if params.num_epochs is not None:
        slates = round(params.num_epochs * prompts) * params.num_sample_generations
    return max(1, round(slates / per_step)) * params.num_iterations


def ppo_steps(rl: RLParams, params: PPOParams, *, prompts: int, world: int = 1) -> int:
    """Steps (one rollout batch each): `max_steps`, else `num_epochs` over the prompts, else the budget of slates."""
    if params.max_steps is not None:
        return params.max_steps
    slates = rl.num_slates if params.num_epochs is None else round(params.num_epochs * prompts)
    return max(1, round(slates / (params.slates_per_step * world)))
