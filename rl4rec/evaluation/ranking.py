"""Exact 0-based ranks of the targets from blocks of scores, without sorting the catalogue.

A target's rank is the number of other candidates that score at least as much: ties count against it, so that a
policy that scores everything alike comes last instead of first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rl4rec._console import Progress
from rl4rec.data.dataset import Fold, IntArray, PreparedData, Ragged
from rl4rec.errors import UserError
from rl4rec.model.device import to_device
from rl4rec.model.ranking import RankingPolicy
from rl4rec.model.scores import Scores, top_k

BlockScorer = Callable[[int, int], Tensor | Scores]
"""Scores of the users start..stop-1 of a fold, (stop - start, I)."""


@dataclass(frozen=True)
class RankedFold:
    """What ranking a fold needs: the targets and what each user has seen before them."""

    name: Fold
    user_rows: IntArray  # (u,) row of each user in the data set
    history: Ragged  # u rows, oldest first
    targets: IntArray  # (u,)
    seen: Ragged  # u rows, the distinct items of the history
    seen_by: IntArray  # (pairs,) place in the fold of the user of each entry of `seen.values`
    repeated: npt.NDArray[np.bool_]  # (u,) whether the user has seen the target before

    def block_scorer(self, policy: RankingPolicy) -> BlockScorer:
        """Feed the fold's histories to a policy, block by block."""

        def score(start: int, stop: int) -> Tensor | Scores:
            bounds = self.history.offsets[start : stop + 1].tolist()
            return policy.score(policy.encode([self.history.values[first:last] for first, last in pairwise(bounds)]))

        return score

    def seen_pairs(self, start: int, stop: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows (within the block) and items of all seen items of a block's users, each (pairs,)."""
        pairs = slice(self.seen.offsets[start], self.seen.offsets[stop])
        rows, items = torch.from_numpy(self.seen_by[pairs]), torch.from_numpy(self.seen.values[pairs])
        placed = to_device(torch.stack([rows - start, items]), device)
        return placed[0], placed[1]


def ranked_fold(data: PreparedData, fold: Fold) -> RankedFold:
    """Targets, histories and seen items of a fold.

    Raises:
        UserError: nobody has a held-out item.
    """
    split = data.split(fold)
    if len(split.targets) == 0:
        raise UserError(
            f"{data.folder}: no user has a target in fold '{fold}' (leave-one-out needs users with three "
            "interactions). Bring more data, then run `dvc repro`."
        )
    seen = split.history.distinct(data.num_items)
    seen_by = np.repeat(np.arange(len(split.targets)), seen.lengths)
    repeated = np.zeros(len(split.targets), dtype=bool)
    repeated[seen_by[split.targets[seen_by] == seen.values]] = True
    return RankedFold(fold, split.user_rows, split.history, split.targets, seen, seen_by, repeated)


def score_blocks(
    score: BlockScorer, *, users: int, num_items: int, batch_size: int, name: str = "ranking"
) -> Iterator[tuple[int, int, Tensor]]:
    """Checked scores of all users, `(start, stop, (stop - start, I) scores)`, at most `batch_size` users at a time.

    The scores may be written to, but are gone with the next block. `name` is that of the work, for its progress.

    Raises:
        UserError: a score is NaN, or a factor of the scores is not finite (training diverged).
        ValueError: the scores have another shape.
    """
    with Progress(name, total=users, unit="user") as progress:
        for start in range(0, users, batch_size):
            stop = min(start + batch_size, users)
            with torch.no_grad():
                scores = score(start, stop)
            _check(scores, start, stop, num_items)
            if isinstance(scores, Scores):
                for first, last, block in scores.blocks():
                    yield start + first, start + last, block
            else:
                yield start, stop, scores.clone()
            progress.update(stop - start)


def _check(scores: Tensor | Scores, start: int, stop: int, num_items: int) -> None:
    if isinstance(scores, Scores):
        shape: tuple[int, ...] = (len(scores.states), len(scores.items))
        sound = bool(torch.isfinite(scores.states.sum() + scores.items.sum()))  # sums propagate what is not finite
    else:
        shape = tuple(scores.shape)
        sound = not torch.isnan(scores.amax())  # amax propagates NaN
    if shape != (stop - start, num_items):
        raise ValueError(f"expected scores of shape {(stop - start, num_items)}, got {shape}")
    if not sound:
        raise UserError(
            f"The policy's scores are NaN or infinite for some of the users {start}..{stop - 1}: its training "
            "diverged. Lower the learning rate (sft.learning_rate or rl.<algorithm>.learning_rate) and train again."
        )


def full_ranks(scores: Tensor, targets: Tensor, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Ranks among the whole catalogue, seen items masked and unmasked. `scores` are overwritten.

    A masked item is never proposed. A target that the user has seen before is masked too and ranks last; that is the
    caller's to set (`RankedFold.repeated`).

    Args:
        scores: (b, I) floats.
        targets: (b,).
        seen: distinct (row, item) pairs, see `RankedFold.seen_pairs`.

    Returns:
        masked (b,) and unmasked (b,), int64, 0 is the top.
    """
    rows, items = seen
    wanted = scores.gather(1, targets.unsqueeze(1))  # (b, 1)
    above = scores[rows, items] >= wanted[rows, 0]  # (pairs,)
    # Ones and zeros in place of the scores, summed as floats: four times as fast as counting booleans. The sum is
    # exact below 2^24 items.
    exact = torch.float32 if scores.shape[1] < 2**24 else torch.float64
    unmasked = scores.ge_(wanted).sum(dim=1, dtype=exact).long() - 1  # (b,) without the target itself
    return unmasked.index_add(0, rows, above.to(unmasked.dtype), alpha=-1), unmasked


def sampled_ranks(scores: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Ranks among the target and its negatives.

    Args:
        scores: (b, I).
        targets: (b,).
        negatives: (b, n) distinct items other than the target, -1 where there are fewer.

    Returns:
        (b,) int64, 0 is the top.
    """
    wanted = scores.gather(1, targets.unsqueeze(1))  # (b, 1)
    at_least = scores.gather(1, negatives.clamp(min=0)) >= wanted  # (b, n)
    return (at_least & (negatives >= 0)).sum(dim=1)


def recommended_items(scores: Tensor, k: int) -> Tensor:
    """The first k items of each ranking, best first, (b, min(k, I)); -1 for items scored -inf: never recommended."""
    values, items = top_k(scores, min(k, scores.shape[1]))
    return torch.where(values > -torch.inf, items, -1)


def count_recommended(items: npt.NDArray[np.int32], ks: Sequence[int], num_items: int) -> IntArray:
    """How often each item is among the first k of `recommended_items` (u, K), (len(ks), I)."""
    counts = [np.bincount(shown[shown >= 0], minlength=num_items) for shown in (items[:, :k] for k in ks)]
    return np.stack(counts)
