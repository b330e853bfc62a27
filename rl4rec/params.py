"""The whole experiment as frozen, validated settings: `params.yaml` is parsed once, into these models.

This module imports neither torch nor transformers, so that a typo is reported in well under a second.
"""

from __future__ import annotations

import contextlib
import math
import re
import unicodedata
from datetime import date, datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rl4rec.algorithms import trained_keys


def _no_bool(value: object) -> object:
    """Reject `true`/`false` for a number: pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("expected a number, got a boolean")
    return value


def _plain(value: str) -> str:
    """Reject what no name or path can hold; a null byte would fail deep inside the system."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in value):
        raise ValueError("expected text without control characters")
    return value


def check_choice(value: str, choices: tuple[str, ...]) -> str:
    """Reject what is not one of the choices, which a table of the code makes; a `Literal` cannot hold those."""
    if value not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}")
    return value


# Lax on purpose: DVC writes 0.00008 as `8e-05`, which YAML 1.1 reads as a string.
# Bounded: what does not fit 32 bits is a slip, and would fail deep inside a library.
Int = Annotated[int, BeforeValidator(_no_bool), Field(ge=-(2**31), lt=2**32)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_plain)]
Probability = Annotated[Float, Field(ge=0, lt=1)]
Positive = Annotated[Int, Field(ge=1)]
Rate = Annotated[Float, Field(gt=0, le=1)]
Seed = Annotated[Int, Field(ge=0, lt=2**32)]


Feedback = Literal["training", "latest"]


class Section(BaseModel):
    """Base of every section: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# --- data ----------------------------------------------------------------------------------------


class SimulatedShop(Section):
    """The embedded made-up shop: latent tastes, item-to-item transitions, popularity skew, baskets, new items."""

    users: Annotated[Int, Field(ge=1, le=10_000_000)] = 1500
    items: Annotated[Int, Field(ge=20, le=1_000_000)] = 200
    tastes: Annotated[Int, Field(ge=1, le=64)] = 8
    mean_length: Annotated[Float, Field(ge=5, le=1000)] = 9.0
    popularity_skew: Annotated[Float, Field(ge=0, le=3)] = 0.8
    basket_size: Annotated[Float, Field(ge=1, le=100)] = 1.0
    new_items: Annotated[Float, Field(ge=0, le=0.9)] = 0.0
    seed: Seed = 7


def _check_time_format(value: str) -> str:
    """A `strptime` format of a whole date whose directives mean the same to Python and to the reader."""
    directives = re.findall("%-?(.?)", value.replace(".%f", ""))
    unknown = next((each for each in directives if each not in tuple("YymdejbBhaAHIpMSzTRDF%")), None)
    if unknown == "f":
        raise ValueError("%f stands for the digits of a fraction and must follow a dot: .%f")
    if unknown is not None:
        raise ValueError(f"%{unknown} is not known here; a format is such as %d/%m/%Y %H:%M, with %z for a zone")
    if not {"Y", "y", "D", "F"} & set(directives):
        raise ValueError("expected the format of a date with its year, such as %d/%m/%Y %H:%M")
    if {"H", "I"} & set(directives) and "M" not in directives:
        raise ValueError("hours need minutes: %H:%M")
    if "I" in directives and "p" not in directives:
        raise ValueError("%I is one of twelve hours and needs %p; the hour of a day is %H")
    return value


class Columns(Section):
    """Names of the columns of an `interactions` file."""

    user: Text = "user"
    item: Text = "item"
    timestamp: Text = "timestamp"
    time_format: Annotated[Text, AfterValidator(_check_time_format)] | None = None

    @model_validator(mode="after")
    def _three_columns(self) -> Self:
        names = (self.user, self.item, self.timestamp)
        if len(set(names)) < 3:
            raise ValueError(f"user, item and timestamp must be three columns, got {', '.join(names)}")
        return self


class Download(Section):
    """How the official files are fetched when no local copy is found."""

    enabled: bool = True
    timeout_s: Annotated[Float, Field(gt=0, le=86_400)] = 30.0
    retries: Annotated[Int, Field(ge=0, le=20)] = 4


def _as_moment(value: object) -> object:
    """A date that YAML has read as one, as text; a number as it is."""
    value = value.isoformat() if isinstance(value, date) else _no_bool(value)  # a datetime is a date too
    if isinstance(value, str):
        for number in (int, float):
            with contextlib.suppress(ValueError):
                value = number(value)
                break
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(value)
            return value
    elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("expected a share below 1, a time as the data have it, or a date such as 2024-05-01")


Moment = Annotated[int | float | str, BeforeValidator(_as_moment)]


class TimeSplit(Section):
    """Where the windows of `split: time` begin."""

    valid_from: Moment = 0.8
    test_from: Moment = 0.9

    @model_validator(mode="after")
    def _windows_in_order(self) -> Self:
        first, second = self.valid_from, self.test_from
        kinds = [
            "date" if isinstance(value, str) else "share" if 0 < value < 1 else "number" for value in (first, second)
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(f"valid_from and test_from must be of one kind, got a {kinds[0]} and a {kinds[1]}")
        if isinstance(first, str) and isinstance(second, str):
            dates = [datetime.fromisoformat(value) for value in (first, second)]
            if (dates[0].tzinfo is None) != (dates[1].tzinfo is None):
                raise ValueError("valid_from and test_from must both have a zone, or none")
            in_order = dates[0] < dates[1]
        else:
            in_order = first < second  # type: ignore[operator]
        if not in_order:
            raise ValueError(f"valid_from ({first}) must be less than test_from ({second})")
        return self


class DataParams(Section):
    """Where interactions come from and how they become sequences."""

    source: Literal["amazon-beauty", "simulated", "sequences", "interactions"] = "amazon-beauty"
    path: Text | None = None
    columns: Columns = Columns()
    k_core: Annotated[Int, Field(ge=1)] = 5
    deduplicate: Literal["exact", "user_item", "none"] = "exact"
    ties: Literal["auto", "hash", "item", "row"] = "auto"
    seed: Seed = 0
    split: Literal["last_item", "time"] = "last_item"
    time_split: TimeSplit = TimeSplit()
    download: Download = Download()
    simulated: SimulatedShop = SimulatedShop()

    @model_validator(mode="after")
    def _own_file_needs_a_path(self) -> Self:
        if self.source in ("sequences", "interactions") and self.path is None:
            raise ValueError(f"source '{self.source}' needs `path`: the file with your data")
        return self

    @model_validator(mode="after")
    def _sequences_have_no_times(self) -> Self:
        if self.source == "sequences" and self.split == "time":
            raise ValueError(
                "split: time needs times, and source 'sequences' has none: use last_item or `interactions`"
            )
        return self

    @property
    def tie_rule(self) -> Literal["hash", "item", "row"]:
        """What decides at equal times; Amazon Beauty keeps the order that published results have."""
        if self.ties == "auto":
            return "item" if self.source == "amazon-beauty" else "hash"
        return self.ties


# Positions kept free after the history, so that the autoregressive route can place a slate there.
SLATE_ROOM = 64

# --- policy --------------------------------------------------------------------------------------


class PolicyParams(Section):
    """The slate policy: a causal language model over items."""

    init: Literal["scratch", "pretrained"] = "scratch"
    model_name: Text = "gpt2"
    generation: Literal["slate", "autoregressive"] = "slate"
    n_layer: Annotated[Int, Field(ge=1, le=96)] = 1
    n_embd: Annotated[Int, Field(ge=4, le=8192)] = 64
    n_head: Annotated[Int, Field(ge=1, le=128)] = 1
    dropout: Probability = 0.35
    score: Literal["cosine", "dot"] = "cosine"
    score_temperature: Annotated[Float, Field(gt=0, le=100)] = 0.07
    max_history: Annotated[Int, Field(ge=1, le=1024)] = 50
    mask_seen: bool = True

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be divisible by n_head ({self.n_head})")
        return self


# --- sft -----------------------------------------------------------------------------------------


Precision = Literal["auto", "bf16", "tf32", "fp32"]


class UpdateParams(Section):
    """What every training has in common."""

    learning_rate: Rate
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: Annotated[Float, Field(gt=0)] = 1.0
    seed: Seed = 0


class SFTParams(UpdateParams):
    """Supervised warm start: next-item cross-entropy."""

    init: Literal["fresh", "champion"] = "fresh"
    feedback: Feedback = "training"
    num_epochs: Annotated[Float, Field(gt=0, le=100_000)] = 24
    max_steps: Positive | None = None
    batch_size: Positive = 256
    gradient_accumulation_steps: Positive = 1
    learning_rate: Rate = 2e-3
    weight_decay: Annotated[Float, Field(ge=0)] = 0.01
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.98
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[Int, Field(ge=0)] = 0
    max_grad_norm: Annotated[Float, Field(gt=0)] = 1.0
    label_smoothing: Probability = 0.1
    target_window: Annotated[Int, Field(ge=1, le=100)] = 3
    target_decay: Rate = 0.3
    softmax: Literal["full", "sampled"] = "full"
    sampled_items: Positive = 4096
    sampling_exponent: Annotated[Float, Field(ge=0, le=2)] = 0.5
    eval_every_epochs: Positive = 4
    early_stopping_patience: Positive | None = 4
    logging_steps: Positive = 50
    precision: Precision = "auto"
    seed: Seed = 0

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) must be below max_steps ({self.max_steps}): the learning rate "
                "would never be reached"
            )
        return self


# --- rl ------------------------------------------------------------------------------------------


class CandidateParams(Section):
    """What a slate is chosen from: the whole catalogue, or the target and sampled negatives."""

    source: Literal["full", "uniform", "popularity"] = "uniform"
    negatives: Positive = 1000
    popularity_exponent: Annotated[Float, Field(ge=0, le=2)] = 0.5


class MixedReward(Section):
    """Weights of the `mixed` reward."""

    ndcg: Annotated[Float, Field(ge=0)] = 0.5
    hit: Annotated[Float, Field(ge=0)] = 0.25
    mrr: Annotated[Float, Field(ge=0)] = 0.25

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.ndcg + self.hit + self.mrr <= 0:
            raise ValueError("at least one weight must be above 0")
        return self


class LoraParams(Section):
    """Low-rank adapters, used with `trainable: lora`."""

    r: Annotated[Int, Field(ge=1, le=512)] = 8
    alpha: Annotated[Int, Field(ge=1)] = 16


class CrossfitParams(Section):
    """Cross-fitted item embeddings, so that RL's feedback is on targets that the policy has not memorised."""

    split_points: Annotated[Int, Field(ge=0, le=8)] = 2
    num_epochs: Annotated[Float, Field(gt=0, le=100_000)] = 16
    seed: Seed = 0


class RolloutParams(UpdateParams):
    """What algorithms that draw slates have in common."""

    batch_size: Positive
    num_sample_generations: Annotated[Int, Field(ge=1, le=1024)] = 1
    gradient_accumulation_steps: Positive = 1
    num_epochs: Annotated[Float, Field(gt=0, le=100_000)] | None = None
    max_steps: Positive | None = None
    temperature: Annotated[Float, Field(gt=0, le=100)] = 0.3

    @property
    def slates_per_step(self) -> int:
        """Effective batch: prompts x generations x accumulation."""
        return self.batch_size * self.num_sample_generations * self.gradient_accumulation_steps

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and self.num_epochs is not None:
            raise ValueError(
                f"max_steps ({self.max_steps}) and num_epochs ({self.num_epochs:g}) both say how long to train: "
                "set one of them to null"
            )
        return self


class PPOParams(RolloutParams):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    learning_rate: Rate = 3e-5
    batch_size: Positive = 1024
    mini_batch_size: Positive = 512
    ppo_epochs: Annotated[Int, Field(ge=1, le=100)] = 2
    clip_range: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    clip_range_value: Annotated[Float, Field(gt=0)] | None = 0.2
    value_coef: Annotated[Float, Field(ge=0)] = 0.5
    value_learning_rate: Rate = 5e-3
    kl_coef: Annotated[Float, Field(ge=0)] = 0.0
    kl_control: Literal["fixed", "adaptive"] = "fixed"
    kl_target: Annotated[Float, Field(gt=0)] = 0.05
    entropy_coef: Annotated[Float, Field(ge=0)] = 0.0
    advantage: Literal["gae", "bandit"] = "gae"
    gamma: Annotated[Float, Field(ge=0, le=1)] = 1.0
    lam: Annotated[Float, Field(ge=0, le=1)] = 0.95
    whiten_advantages: bool = True

    @model_validator(mode="after")
    def _mini_batches_divide(self) -> Self:
        if self.batch_size % self.mini_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be divisible by mini_batch_size ({self.mini_batch_size})"
            )
        return self

    @model_validator(mode="after")
    def _adaptive_control_has_a_start(self) -> Self:
        if self.kl_control == "adaptive" and self.kl_coef == 0:
            raise ValueError(
                "kl_control: adaptive multiplies kl_coef, which is 0 and would stay 0: "
                "set kl_coef to a start such as 0.1, or kl_control: fixed"
            )
        return self


class GRPOParams(RolloutParams):
    """Group relative policy optimisation (Shao et al. 2024)."""

    learning_rate: Rate = 1e-4
    batch_size: Positive = 128
    num_sample_generations: Annotated[Int, Field(ge=2, le=1024)] = 8
    num_iterations: Annotated[Int, Field(ge=1, le=100)] = 1
    loss_type: Literal["grpo", "cispo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "none"
    clip_range: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    clip_range_high: Annotated[Float, Field(gt=0)] | None = None
    cispo_max_ratio: Annotated[Float, Field(gt=1, le=1000)] = 5.0
    kl_coef: Annotated[Float, Field(ge=0)] = 0.0
    entropy_coef: Annotated[Float, Field(ge=0)] = 0.0


class ContinuedParams(UpdateParams):
    """The sceptic's control: further cross-entropy on RL's prompts, as many updates as GRPO makes."""

    learning_rate: Rate = 1e-5


class RLParams(Section):
    """Fine-tuning on the metric: what all algorithms share, then one section each."""

    feedback: Feedback = "training"
    crossfit: CrossfitParams = CrossfitParams()

    reward_type: Literal["ndcg", "hit", "mrr", "mixed", "custom"] = "ndcg"
    mixed: MixedReward = MixedReward()
    k: Annotated[Int, Field(ge=1, le=1000)] = 10
    candidates: CandidateParams = CandidateParams()
    trainable: Literal["all", "body", "lora"] = "body"
    lora: LoraParams = LoraParams()
    sft_coef: Annotated[Float, Field(ge=0)] = 0.0
    num_slates: Positive = 204_800
    weight_decay: Annotated[Float, Field(ge=0)] = 0.01
    eval_every: Positive = 50
    keep: Literal["last", "best"] = "last"
    max_kl: Annotated[Float, Field(gt=0)] | None = 50.0
    logging_steps: Positive = 1
    precision: Precision = "auto"
    ppo: PPOParams = PPOParams()
    grpo: GRPOParams = GRPOParams()
    sft_continued: ContinuedParams = ContinuedParams()

    @model_validator(mode="after")
    def _crossfit_freezes_the_items(self) -> Self:
        if self.crossfit.split_points and self.trainable == "all":
            raise ValueError(
                "trainable: all would train item embeddings that crossfit replaces; "
                "set trainable: body or lora, or crossfit.split_points: 0"
            )
        return self

    @model_validator(mode="after")
    def _slate_fits_the_candidates(self) -> Self:
        if self.candidates.source != "full" and self.k > self.candidates.negatives + 1:
            raise ValueError(
                f"k ({self.k}) must be no larger than the candidate set "
                f"(1 target + {self.candidates.negatives} negatives = {self.candidates.negatives + 1})"
            )
        return self

    def count_steps(self, params: RolloutParams, *, prompts: int) -> int:
        """Steps, one rollout each: `max_steps`, or from `num_epochs` over the prompts, or the budget of slates."""
        if params.max_steps is not None:
            return params.max_steps
        slates = self.num_slates
        if params.num_epochs is not None:
            slates = round(params.num_epochs * prompts) * params.num_sample_generations
        return max(1, round(slates / params.slates_per_step))


# The sections of `rl` that belong to one algorithm each: ppo, grpo, sft_continued.
ALGORITHMS = tuple(name for name, field in RLParams.model_fields.items() if isinstance(field.default, UpdateParams))

# --- evaluate, compare, tracking -------------------------------------------------------------------


class EvaluateParams(Section):
    """Protocols of the evaluation; every metric's key names its protocol."""

    ks: Annotated[tuple[Positive, ...], Field(min_length=1)] = (5, 10, 20)
    negatives: Positive = 100
    seed: Seed = 42
    batch_size: Positive = 512

    @model_validator(mode="after")
    def _cutoffs_fit(self) -> Self:
        if list(self.ks) != sorted(set(self.ks)):
            raise ValueError(f"ks must be increasing without repeats, got {list(self.ks)}")
        if self.ks[-1] > self.negatives + 1:
            raise ValueError(
                f"the largest of ks ({self.ks[-1]}) must be no larger than the candidate set "
                f"(1 target + {self.negatives} negatives)"
            )
        return self

    def missing(self, key: str) -> str | None:
        """Why a figure is none that an evaluation has, with what to write; None if it is one.

        Args:
            key: such as `test/full/ndcg@10`.
        """
        fold, protocol, metric, cutoff = re.fullmatch(METRIC_KEY, key).groups()  # type: ignore[union-attr]
        sampled, k = f"sampled{self.negatives}", int(cutoff)
        if protocol.startswith("sampled") and protocol != sampled:
            return (
                f"evaluate.negatives is {self.negatives}: write {fold}/{sampled}/{metric}@{cutoff}, or set "
                f"evaluate.negatives: {protocol.removeprefix('sampled')}"
            )
        known = _METRICS["sampled" if protocol == sampled else protocol]
        if metric not in known:
            return f"{protocol} has no {metric}: choose one of {', '.join(known)}"
        ks = [each for each in self.ks if metric != "diversity" or each <= DIVERSITY_K]
        if k not in ks:
            why = f", and diversity is measured up to {DIVERSITY_K}" if metric == "diversity" else ""
            return f"evaluate.ks is {list(self.ks)}{why}: write a cut-off of those, or add {k} to evaluate.ks"
        return None


DIVERSITY_K = 10  # the largest cut-off that diversity is measured at: pairs grow with the square
_ACCURACY = ("ndcg", "hit", "mrr")
_SHOWN = ("coverage", "popularity", "popularity_percentile")
_METRICS = {  # what an evaluation has, by protocol
    "full": (*_ACCURACY, *_SHOWN, "diversity"),
    "full_unmasked": (*_ACCURACY, *_SHOWN),
    "sampled": _ACCURACY,
}

# Names of figures, which `rl4rec/metrics.py` makes and takes apart.
METRIC_KEY = r"(valid|test)/(full|full_unmasked|sampled[0-9]+)/([a-z_]+)@([0-9]{1,9})"
METRIC_KEY_FORM = "FOLD/PROTOCOL/METRIC@K (valid or test; full, full_unmasked or sampled<n>), such as test/full/ndcg@10"


def _check_metric_key(value: str) -> str:
    if re.fullmatch(METRIC_KEY, value) is None:
        raise ValueError(f"expected {METRIC_KEY_FORM}")
    return value


def _check_direction(value: str) -> str:
    if re.search(r"/popularity(_percentile)?@", value):
        raise ValueError("neither more nor less popularity is better, so no gate can judge by it: choose another")
    return value


def _without_nulls(value: object) -> object:
    """Guards without those that are null: settings put over others take one away so."""
    if not isinstance(value, dict):
        return value
    for key in value:
        _check_metric_key(str(key))
    return {key: allowed for key, allowed in value.items() if allowed is not None}


Figure = Annotated[str, AfterValidator(_check_metric_key)]
Judged = Annotated[Figure, AfterValidator(_check_direction)]
Trained = Annotated[str, AfterValidator(lambda value: check_choice(value, trained_keys()))]


class GateParams(Section):
    """What a candidate must show before it replaces the champion (`rl4rec promote`); changes are relative."""

    candidates: Annotated[tuple[Trained, ...], Field(min_length=1)] = ("ppo", "grpo")
    metric: Judged = "test/full/ndcg@10"
    margin: Annotated[Float, Field(ge=-1, le=1)] = 0.0
    guards: Annotated[dict[Judged, Annotated[Float, Field(ge=0, le=1)]], BeforeValidator(_without_nulls)] = {
        "test/sampled100/ndcg@10": 0.01,
        "test/full/hit@10": 0.02,
        "test/full/coverage@10": 0.15,
    }

    @model_validator(mode="after")
    def _guards_are_others(self) -> Self:
        if self.metric in self.guards:
            raise ValueError(
                f"metric and guards both have {self.metric}, which margin judges already: take it out of guards"
            )
        return self


class CompareParams(Section):
    """Paired bootstrap over users, and the gate that decides by it."""

    bootstrap_samples: Annotated[Int, Field(ge=100, le=1_000_000)] = 10_000
    confidence: Annotated[Float, Field(gt=0.5, lt=1)] = 0.95
    seed: Seed = 0
    gate: GateParams = GateParams()


class MonitorParams(Section):
    """What makes retraining due (`rl4rec monitor`): limits of its signals."""

    new_interactions: Annotated[Float, Field(ge=0)] = 0.05
    unseen_items: Annotated[Float, Field(ge=0, le=1)] = 0.05
    new_users: Annotated[Float, Field(ge=0, le=1)] = 0.5
    popularity_shift: Annotated[Float, Field(ge=0)] = 0.1
    shown_popularity: Annotated[Float, Field(ge=0, le=1)] = 0.05
    coverage_drop: Annotated[Float, Field(ge=0, le=1)] = 0.2
    empty_lists: Annotated[Float, Field(ge=0, le=1)] = 0.0
    seed: Seed = 0


class TrackingParams(Section):
    """MLflow. `MLFLOW_TRACKING_URI` in the environment wins over `uri`."""

    enabled: bool = True
    uri: Text = "sqlite:///mlflow.db"
    experiment: Text = "rl4rec"
    registered_model: Annotated[Text, Field(pattern=r"^[^/:.]+$")] = "rl4rec"
    system_metrics: bool = True


class Params(Section):
    """The whole of `params.yaml`."""

    data: DataParams = DataParams()
    policy: PolicyParams = PolicyParams()
    sft: SFTParams = SFTParams()
    rl: RLParams = RLParams()
    evaluate: EvaluateParams = EvaluateParams()
    compare: CompareParams = CompareParams()
    monitor: MonitorParams = MonitorParams()
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _reported_cutoff(self) -> Self:
        if self.rl.k not in self.evaluate.ks:
            raise ValueError(f"rl.k ({self.rl.k}) must be one of evaluate.ks {list(self.evaluate.ks)}")
        return self

    @model_validator(mode="after")
    def _generated_slate_fits_the_context(self) -> Self:
        if self.policy.generation == "autoregressive" and self.rl.crossfit.split_points:
            raise ValueError("policy.generation: autoregressive needs rl.crossfit.split_points: 0")
        if self.policy.generation == "autoregressive" and self.rl.k > SLATE_ROOM:
            raise ValueError(f"rl.k ({self.rl.k}) must be at most {SLATE_ROOM} with policy.generation: autoregressive")
        return self

    @model_validator(mode="after")
    def _slate_fits_the_simulated_shop(self) -> Self:
        most = self.data.simulated.items - int(self.policy.mask_seen)  # a history has an item at least
        if self.data.source == "simulated" and self.rl.k > most:
            raise ValueError(
                f"rl.k ({self.rl.k}) must be at most {most}: the simulated shop has {self.data.simulated.items} items "
                "(data.simulated.items), and a slate holds different ones, none that the user took"
            )
        return self

    @model_validator(mode="after")
    def _gate_judges_what_is_measured(self) -> Self:
        gate = self.compare.gate
        named = {gate.metric: "metric"} | dict.fromkeys(gate.guards, "guards")
        found = [(key, place, self.evaluate.missing(key)) for key, place in named.items()]
        problems = [f"compare.gate.{place}: {key} is not measured. {why}" for key, place, why in found if why]
        if "latest" in (self.sft.feedback, self.rl.feedback):
            problems += [
                f"compare.gate.{place}: {key} is of the validation targets, which feedback: latest trains on. "
                "Write one of fold test"
                for key, place in named.items()
                if key.startswith("valid/")
            ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def _best_is_a_choice(self) -> Self:
        if self.rl.keep == "best":
            for section in ("sft", "rl"):
                if getattr(self, section).feedback == "latest":
                    raise ValueError(
                        f"rl.keep: best chooses by the validation targets, which {section}.feedback: latest trains on: "
                        f"set rl.keep: last, or {section}.feedback: training"
                    )
        return self

    @model_validator(mode="after")
    def _steps_suffice(self) -> Self:
        rl = self.rl
        for name in ALGORITHMS:
            params = getattr(rl, name)
            if not isinstance(params, RolloutParams) or params.num_epochs is not None:
                continue  # epochs of prompts: as many steps as the data have
            steps = rl.count_steps(params, prompts=0)
            told = f"rl.{name} makes {steps} step{'s' if steps > 1 else ''}"
            if rl.keep == "best" and rl.eval_every >= steps:
                raise ValueError(
                    f"rl.keep: best has no choice: {told}, and with rl.eval_every: {rl.eval_every} only the last is "
                    "validated. Lower rl.eval_every, or set rl.keep: last"
                )
            if rl.max_kl is not None and rl.logging_steps > steps:
                raise ValueError(
                    f"rl.max_kl is watched every rl.logging_steps ({rl.logging_steps}), but {told}: lower "
                    "rl.logging_steps, or set rl.max_kl: null"
                )
        return self
