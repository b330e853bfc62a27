"""Training loops: SFT on TRL's SFTTrainer, GRPO on TRL's GRPOTrainer, PPO on accelerate."""
