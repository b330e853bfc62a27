"""Pure reinforcement-learning maths on tensors: prompts, candidates, advantages, losses."""
