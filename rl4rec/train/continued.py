"""The sceptic's control: RL's prompts, RL's weights and GRPO's number of updates, spent on cross-entropy.

Whatever GRPO gains beyond this, it gains by its objective and not by seeing the same feedback once more.
"""

from __future__ import annotations

from rl4rec.data.dataset import PreparedData
from rl4rec.model.crossfit_embeddings import CrossfitEmbeddings
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import RLParams
from rl4rec.train.log import RunLog
from rl4rec.train.loop import PromptTrainer, Stats
from rl4rec.train.losses import target_cross_entropy
from rl4rec.train.rewards import GainsFunction


class ContinuedSFTTrainer(PromptTrainer):
    """Cross-entropy of each prompt's target over the whole catalogue (less the seen items).

    Args:
        policy: the warm start, trained in place.
        data: source of the prompts.
        rl: the `rl` section.
        run: takes log rows and validations.
        crossfit: item embeddings that have not seen the prompts' targets.
        own_reward: of the other algorithms; here nothing is rewarded.
    """

    name, unit = "sft_continued", "prompts"

    def __init__(
        self,
        policy: SlatePolicy,
        data: PreparedData,
        rl: RLParams,
        run: RunLog,
        *,
        crossfit: CrossfitEmbeddings | None = None,
        own_reward: GainsFunction | None = None,
    ) -> None:
        prompts = rl.grpo.batch_size * rl.grpo.gradient_accumulation_steps
        super().__init__(policy, data, rl, rl.sft_continued, run, crossfit=crossfit, prompts_per_step=prompts)
        self.prepare(
            rl.sft_continued,
            weight_decay=rl.weight_decay,
            total_steps=self.count_steps(rl.grpo),
            samples_per_step=prompts,
        )

    def train_step(self, step: int, *, logged: bool) -> Stats:
        """As many updates as GRPO makes on these prompts; the numbers of the last one."""
        prompts = self.read_prompts(step)
        support = self.policy.support(prompts.histories)
        for _ in range(self.rl.grpo.num_iterations):
            scores = self.policy.score_candidates(self.encode(self.policy, prompts.histories), support)
            loss = self.share(prompts, self.prompts_per_step) * target_cross_entropy(scores, support, prompts.targets)
            self.backward(loss)
            norm = self.update()
        return {"loss": loss.detach(), "grad_norm": norm}
