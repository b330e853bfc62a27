"""Training: slates to reward to update; SFT, cross-fitting, PPO, GRPO and the control on one loop."""
