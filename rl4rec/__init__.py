"""rl4rec: train a language-model recommender on the metric it is judged by.

What is in `__all__` is the public interface (docs/api.md). Each name is imported when it is first used, so that
`import rl4rec` and the quick commands wait for neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl4rec.api import Trained, continue_sft, crossfit, fine_tune, grpo, ppo, sft
    from rl4rec.data.dataset import PreparedData, Ragged, load_prepared
    from rl4rec.data.prepare import prepare
    from rl4rec.data.vocabulary import build_tokenizer
    from rl4rec.errors import UserError
    from rl4rec.evaluation.bootstrap import Interval, paired_bootstrap
    from rl4rec.evaluation.compare import compare_policies
    from rl4rec.evaluation.protocols import Evaluation, evaluate, evaluate_oracle
    from rl4rec.metrics import hit_rate, mrr, ndcg, slate_gains
    from rl4rec.model.create import create_policy
    from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
    from rl4rec.model.load import load_policy
    from rl4rec.model.policy import SlatePolicy
    from rl4rec.model.ranking import PopularityPolicy, RankingPolicy
    from rl4rec.params import Params
    from rl4rec.serve.recommender import Recommendation, Recommender, load_recommender
    from rl4rec.settings import load_params
    from rl4rec.train.rewards import GainsFunction

__version__ = "0.1.0"

__all__ = [
    "CrossfitEmbeddings",
    "Evaluation",
    "GainsFunction",
    "Interval",
    "Params",
    "PopularityPolicy",
    "PreparedData",
    "Ragged",
    "RankingPolicy",
    "Recommendation",
    "Recommender",
    "SlatePolicy",
    "Trained",
    "UserError",
    "__version__",
    "build_tokenizer",
    "compare_policies",
    "continue_sft",
    "create_policy",
    "crossfit",
    "evaluate",
    "evaluate_oracle",
    "fine_tune",
    "grpo",
    "hit_rate",
    "load_params",
    "load_policy",
    "load_prepared",
    "load_recommender",
    "mrr",
    "ndcg",
    "paired_bootstrap",
    "ppo",
    "prepare",
    "sft",
    "slate_gains",
]

_MODULES = {
    "api": ("Trained", "continue_sft", "crossfit", "fine_tune", "grpo", "ppo", "sft"),
    "data.dataset": ("PreparedData", "Ragged", "load_prepared"),
    "data.prepare": ("prepare",),
    "data.vocabulary": ("build_tokenizer",),
    "errors": ("UserError",),
    "evaluation.bootstrap": ("Interval", "paired_bootstrap"),
    "evaluation.compare": ("compare_policies",),
    "evaluation.protocols": ("Evaluation", "evaluate", "evaluate_oracle"),
    "metrics": ("hit_rate", "mrr", "ndcg", "slate_gains"),
    "model.create": ("create_policy",),
    "model.crossfit_embeddings": ("CrossfitEmbeddings",),
    "model.load": ("load_policy",),
    "model.policy": ("SlatePolicy",),
    "model.ranking": ("PopularityPolicy", "RankingPolicy"),
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
