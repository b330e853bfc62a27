"""What the page of a run says about it: where to look next, for somebody who sees these runs for the first time."""

NOTES = {
    "pipeline": (
        "One run of the pipeline (`dvc repro`); its stages are the runs below it, with all settings here.\n\n"
        "**PPO against GRPO:** tick `rl-ppo` and `rl-grpo` in the list of runs and press *Compare*. Both have the "
        "learning curve `valid/full/ndcg_at_10` and, once evaluated, the figures `test/...` of the policy that was "
        "kept.\n\n"
        "**The report:** run `compare`, *Artifacts*, `report/comparison.html`."
    ),
    "prepare": "The data: interactions to sequences, splits and the vocabulary of items. `data/...`: how many of each.",
    "sft": (
        "The warm start: next-item prediction. `valid/...` is its learning curve; `test/...`, added by `evaluate-sft`, "
        "are the figures of the policy that was kept."
    ),
    "crossfit": "Item embeddings that never saw the targets that RL is rewarded for: `docs/rl-study.md` says why.",
    "sft_continued": (
        "The control: GRPO's updates spent on cross-entropy. `valid/...` is its learning curve; `test/...`, added by "
        "`evaluate-sft_continued`, are the figures of the policy that was kept."
    ),
    "rl": (
        "Reinforcement learning on the metric. `valid/full/ndcg_at_10` is the learning curve, `train/reward` that "
        "of the sampled slates; `test/...`, added by the `evaluate` run, are the figures of the policy that was kept. "
        "Compare `rl-ppo` with `rl-grpo`."
    ),
    "evaluate": (
        "The held-out items ranked by one policy: `<fold>/<protocol>/<metric>@<k>`. *full* ranks the whole catalogue, "
        "*sampled* the target among negatives; the two are never comparable. The `test/...` figures are in the run "
        "that trained the policy, too."
    ),
    "compare": (
        "All policies over the same users. `<a>_vs_<b>/...`: the difference of a metric. The report with intervals and "
        "plots: *Artifacts*, `report/comparison.html`."
    ),
}
