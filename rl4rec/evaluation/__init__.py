"""Evaluation: exact ranks of the held-out items under named protocols, the same for every policy."""

from rl4rec.evaluation.protocols import Evaluation, evaluate, evaluate_oracle, validate
from rl4rec.evaluation.ranking import Scorer
from rl4rec.evaluation.scorers import load_scorer, popularity_scorer

__all__ = ["Evaluation", "Scorer", "evaluate", "evaluate_oracle", "load_scorer", "popularity_scorer", "validate"]
