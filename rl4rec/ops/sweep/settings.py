"""`sweep.yaml`: which stage to train again and again, over which settings, and how the search goes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rl4rec.algorithms import training_stages
from rl4rec.params import Float, Int, Positive, Section, Seed, check_choice


def _scalar(value: Any) -> Any:
    """Numbers that YAML reads as strings (`1e-4`) as numbers; refuse lists and sections."""
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    if value is None or isinstance(value, bool | int | float):
        return value
    raise ValueError("expected a number, a text, true, false or null")


class Dimension(Section):
    """What one setting may be: a range, or some values."""

    low: Float | None = None
    high: Float | None = None
    log: bool = False
    step: Annotated[Float, Field(gt=0)] | None = None
    choices: Annotated[tuple[Annotated[Any, BeforeValidator(_scalar)], ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices is not None:
            if self.model_fields_set != {"choices"}:
                raise ValueError("give either choices, or low and high (with log or step)")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high (with log or step), or choices")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, got {self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("give either log or step")
        if self.step is not None and not _multiple(self.high - self.low, self.step):
            raise ValueError(f"high - low ({self.high - self.low:g}) must be a multiple of step ({self.step:g})")
        return self

    def contains(self, value: Any) -> bool:
        """Whether a value can be proposed."""
        if self.choices is not None:
            return value in self.choices
        if self.low is None or self.high is None or not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and (self.step is None or _multiple(value - self.low, self.step))


def _multiple(length: float, step: float) -> bool:
    return abs(length / step - round(length / step)) < 1e-9


class SamplerParams(Section):
    """Who proposes the values: the tree-structured Parzen estimator (Bergstra et al. 2011), or chance alone."""

    name: Literal["tpe", "random"] = "tpe"
    startup_trials: Annotated[Int, Field(ge=0)] = 5
    seed: Seed = 0


class PrunerParams(Section):
    """Stop a trial whose best validation so far is below the median of the earlier trials' at the same point."""

    startup_trials: Annotated[Int, Field(ge=0)] = 3
    warmup_steps: Annotated[Int, Field(ge=0)] = 0


class SweepParams(Section):
    """The whole of `sweep.yaml`. The search maximises; all metrics of validation are better when larger."""

    stage: Annotated[str, AfterValidator(lambda value: check_choice(value, training_stages()))]
    metric: Annotated[str, Field(pattern=r"^valid/full/(ndcg|hit)@\d+$")] = "valid/full/ndcg@10"
    trials: Positive = 12
    seeds: Positive = 1
    timeout_s: Annotated[Float, Field(gt=0)] | None = None
    sampler: SamplerParams = SamplerParams()
    pruner: PrunerParams | None = PrunerParams()
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
