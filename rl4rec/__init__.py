"""rl4rec: train a language-model recommender on the metric it is judged by.

What is in `__all__` is the public interface (docs/api.md). Each name is imported when it is first used, so that
`import rl4rec` and the quick commands wait for neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl4rec.api import Trained, crossfit, grpo, ppo, sft
    from rl4rec.data.dataset import PreparedData, Ragged, load_prepared
    from rl4rec.data.prepare import prepare
    from rl4rec.data.vocabulary import build_tokenizer
    from rl4rec.errors import UserError
    from rl4rec.evaluation.bootstrap import Interval, paired_bootstrap
    from rl4rec.evaluation.compare import compare_policies
    from rl4rec.evaluation.protocols import Evaluation, evaluate, evaluate_oracle
    from rl4rec.evaluation.scorers import popularity_scorer
    from rl4rec.metrics import hit_rate, mrr, ndcg, slate_gains
    from rl4rec.model.create import create_policy
    from rl4rec.model.crossfit_embeddings import LeaveOutEmbeddings
    from rl4rec.model.load import load_policy
    from rl4rec.model.policy import SlatePolicy
    from rl4rec.params import Params
    from rl4rec.serve.recommender import Recommendation, Recommender, load_recommender
    from rl4rec.settings import load_params
    from rl4rec.train.rewards import GainsFunction

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "GainsFunction",
    "Interval",
    "LeaveOutEmbeddings",
    "Params",
    "PreparedData",
    "Ragged",
    "Recommendation",
    "Recommender",
    "SlatePolicy",
    "Trained",
    "UserError",
    "__version__",
    "build_tokenizer",
    "compare_policies",
    "create_policy",
    "crossfit",
    "evaluate",
    "evaluate_oracle",
    "grpo",
    "hit_rate",
    "load_params",
    "load_policy",
    "load_prepared",
    "load_recommender",
    "mrr",
    "ndcg",
    "paired_bootstrap",
    "popularity_scorer",
    "ppo",
    "prepare",
    "sft",
    "slate_gains",
]

_MODULES = {
    "api": ("Trained", "crossfit", "grpo", "ppo", "sft"),
    "data.dataset": ("PreparedData", "Ragged", "load_prepared"),
    "data.prepare": ("prepare",),
    "data.vocabulary": ("build_tokenizer",),
    "errors": ("UserError",),
    "evaluation.bootstrap": ("Interval", "paired_bootstrap"),
    "evaluation.compare": ("compare_policies",),
    "evaluation.protocols": ("Evaluation", "evaluate", "evaluate_oracle"),
    "evaluation.scorers": ("popularity_scorer",),
    "metrics": ("hit_rate", "mrr", "ndcg", "slate_gains"),
    "model.create": ("create_policy",),
    "model.crossfit_embeddings": ("LeaveOutEmbeddings",),
    "model.load": ("load_policy",),
    "model.policy": ("SlatePolicy",),
    "params": ("Params",),
    "serve.recommender": ("Recommendation", "Recommender", "load_recommender"),
    "settings": ("load_params",),
    "train.rewards": ("GainsFunction",),
}
_HOME = {name: f"rl4rec.{module}" for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # a type checker that saw it would take any name

    def __getattr__(name: str) -> object:
        """A public name, from its module."""
        if name not in _HOME:
            raise AttributeError(f"module 'rl4rec' has no attribute '{name}'")
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value  # found without this function from now on
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
