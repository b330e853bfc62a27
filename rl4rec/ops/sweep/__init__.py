"""A search over settings of one stage with Optuna: `rl4rec sweep`, `sweep.yaml`."""
