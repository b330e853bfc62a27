"""The one table of policies: their names, how reports show them, what they are compared with, what trains them.

A new RL algorithm is a row here, its section of `rl` in `rl4rec/params.py`, its trainer and a line of dvc.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass

BASELINE = "popularity"  # nothing is trained; far below all others, so that plots leave it out
START = "sft"  # what RL starts from
SHOWN = "grpo"  # the RL algorithm that stands for all of them where a single one is shown
CONTROL = "sft_continued"  # the same updates as cross-entropy
ORACLE = "oracle"  # the truth of simulated data; the comparison evaluates it


@dataclass(frozen=True)
class Policy:
    """One policy of the comparison.

    Attributes:
        key: its name in paths and settings: models/<key>, logs/<key>.jsonl, metrics/<key>.json, section rl.<key>.
        label: its name in tables and plots.
        colour: of its marks in plots.
        meaning: a sentence for the report.
        marker: of its points in plots.
        phrase: its name in the question "Is RL better than ...?"; None: the label.
        stage: the DVC stage that trains it; None: nothing is trained.
        compared_with: keys of the policies that the report subtracts from it.
        trainer: what trains it on RL's prompts, `module:class`; `rl4rec.api` imports it when it is used.
        lower: settings to lower when its stage runs out of memory, most effective first.
    """

    key: str
    label: str
    colour: str
    meaning: str
    marker: str = "o"
    phrase: str | None = None
    stage: str | None = None
    compared_with: tuple[str, ...] = ()
    trainer: str | None = None
    lower: tuple[str, ...] = ()

    @property
    def is_rl(self) -> bool:
        """Whether RL trains it: a variant of the stage `rl`."""
        return self.stage is not None and self.stage.startswith("rl@")


# In the order of the report.
POLICIES: tuple[Policy, ...] = (
    Policy(
        key=BASELINE,
        label="Popularity",
        colour="#868b94",
        meaning="Shows everybody what was taken most in the training data. The baseline.",
    ),
    Policy(
        key=START,
        label="SFT",
        colour="#0f9d76",
        meaning="GPT-2-style policy over items, trained to predict the next item. The start of all others.",
        marker="^",
        stage="sft",
        compared_with=("popularity",),
        lower=("sft.batch_size", "policy.max_history", "sft.target_window"),
    ),
    Policy(
        key=CONTROL,
        label="SFT continued",
        colour="#2b97ad",
        meaning="The control: SFT, with GRPO's updates spent on more cross-entropy.",
        phrase="more SFT, the control",
        stage="sft_continued",
        compared_with=("sft",),
        trainer="rl4rec.train.continued:ContinuedSFTTrainer",
        lower=("rl.grpo.batch_size", "policy.max_history"),
    ),
    Policy(
        key="ppo",
        label="PPO",
        colour="#d9730d",
        meaning="SFT, then PPO with the metric of its slates as the reward.",
        marker="s",
        stage="rl@ppo",
        compared_with=("sft", "sft_continued"),
        trainer="rl4rec.train.ppo:PPOTrainer",
        lower=("rl.ppo.mini_batch_size", "rl.ppo.batch_size", "rl.candidates.negatives", "policy.max_history"),
    ),
    Policy(
        key="grpo",
        label="GRPO",
        colour="#3f7be0",
        meaning="SFT, then GRPO with the metric of its slates as the reward.",
        stage="rl@grpo",
        compared_with=("sft", "sft_continued", "ppo"),
        trainer="rl4rec.train.grpo:GRPOTrainer",
        lower=("rl.grpo.batch_size", "rl.grpo.num_sample_generations", "rl.candidates.negatives", "policy.max_history"),
    ),
    Policy(
        key=ORACLE,
        label="Oracle",
        colour="#9b59d0",
        meaning="The simulated shop's true next-item distribution: the best that any policy could do.",
    ),
)


def get_policy(key: str) -> Policy:
    """The row of a policy.

    Raises:
        ValueError: there is none; the message lists the choices.
    """
    for policy in POLICIES:
        if policy.key == key:
            return policy
    raise ValueError(f"unknown policy {key!r}: expected one of {', '.join(policy.key for policy in POLICIES)}")


def rl_algorithms() -> tuple[Policy, ...]:
    """The policies that RL trains."""
    return tuple(policy for policy in POLICIES if policy.is_rl)


def trained_keys() -> tuple[str, ...]:
    """Keys of the policies that a stage trains: those with a folder below models/."""
    return tuple(policy.key for policy in POLICIES if policy.stage is not None)


def evaluated_keys() -> tuple[str, ...]:
    """Keys of the policies that the stage `evaluate` ranks with."""
    return tuple(policy.key for policy in POLICIES if policy.key != ORACLE)


def training_stages() -> tuple[str, ...]:
    """Names of the DVC stages that train a policy."""
    return tuple(policy.stage for policy in POLICIES if policy.stage is not None)


def pairs() -> tuple[tuple[Policy, Policy], ...]:
    """The pairs to compare, in the order of the report.

    RL against the policies without RL, these among each other, RL algorithms among each other, and at the end what is
    compared with the baseline; the later row of the table first.
    """
    found = [(first, get_policy(key)) for first in reversed(POLICIES) for key in first.compared_with]

    def place(pair: tuple[Policy, Policy]) -> tuple[bool, bool, bool, int]:
        first, second = pair
        return second.key == BASELINE, second.is_rl, not first.is_rl, POLICIES.index(second)

    return tuple(sorted(found, key=place))


def pair_key(pair: tuple[Policy, Policy]) -> str:
    """Name of a pair in `metrics/comparison.json`: that of `first - second` is `first_vs_second`."""
    return f"{pair[0].key}_vs_{pair[1].key}"
