"""What is odd about prepared data, in sentences: said once where it is found, and kept in the report.

Most of it makes figures mean something else than they seem to. Counts are in `stats.json`.
"""

from __future__ import annotations

from typing import Any

from rl4rec.errors import listed

NOTABLE = 0.05  # the share from which on something is said


def oddities(stats: dict[str, Any]) -> list[str]:
    """One sentence for each thing that is notable about the data, with its share and what to do.

    Args:
        stats: `stats.json`.
    """
    found = [*_rows(stats), *_files(stats), *_ties(stats), *_targets(stats)]
    repeats = describe_repeats(repeated_share(stats))
    return [*found, repeats] if repeats else found


def repeated_share(stats: dict[str, Any]) -> float:
    """Share of the targets that the user has taken before, in the fold where it is larger."""
    return max(_target_share(stats, "repeated_targets", fold) for fold in ("valid", "test"))


def describe_repeats(share: float) -> str | None:
    """What repeat purchases mean for masked figures; None where there are few.

    Args:
        share: of the targets of a fold.
    """
    if share < NOTABLE:
        return None
    return (
        f"{_percent(share)} of the targets are items that the user has taken before. With policy.mask_seen: true "
        "they are never proposed, and test/full counts each as missed; test/full_unmasked counts them. If users should "
        "be shown such items again, set policy.mask_seen: false and decide by test/full_unmasked/ndcg@10"
    )


def describe_left_out(names: list[str]) -> str:
    """Which files of a data folder are not read, and why.

    Args:
        names: of the files.
    """
    return (
        f"{len(names)} file{'s' if len(names) > 1 else ''} of the data folder not read: {listed(names)}. Tables end in "
        ".csv, .tsv, .jsonl, .ndjson, .json (each also .gz) or .parquet"
    )


def _rows(stats: dict[str, Any]) -> list[str]:
    rows = stats.get("rows", {})
    read, found = rows.get("read", 0), []
    for key, why in (
        ("dropped_duplicates", "as duplicates (data.deduplicate)"),
        ("dropped_k_core", "because their user or item has too few interactions: lower data.k_core to keep more"),
    ):
        if read and rows.get(key, 0) / read >= NOTABLE:
            found.append(f"{_percent(rows[key] / read)} of {read:,} interactions were dropped {why}")
    return found


def _files(stats: dict[str, Any]) -> list[str]:
    left_out = stats.get("files_left_out", [])
    return [describe_left_out(left_out)] if left_out else []


def _ties(stats: dict[str, Any]) -> list[str]:
    ties = stats.get("ties", {})
    neighbours, targets = ties.get("tied_neighbours") or 0.0, _target_share(stats, "tied_targets")
    if max(neighbours, targets) < NOTABLE:
        return []
    then = {
        "hash": "Their order was drawn (data.ties: hash), so part of what comes next is chance",
        "item": "They are ordered by item id (data.ties: item): the later one has the larger id, which a policy can "
        "learn and which is not there in use. data.ties: hash has no such pattern",
        "row": "They are ordered as in the files (data.ties: row): see that this is the order in which users took them",
    }[ties["rule"]]
    return [
        f"{_percent(neighbours)} of neighbours in a sequence and {_percent(targets)} of the test targets have the time "
        f"of another item of the user. {then}"
    ]


def _targets(stats: dict[str, Any]) -> list[str]:
    found, by_time = [], stats.get("split", {}).get("kind") == "time"
    test, users = stats.get("held_out", {}).get("test", {}).get("users", 0), stats.get("users", 0)
    if users and (users - test) / users >= NOTABLE:
        why = "no item in the test window, or none before it" if by_time else "fewer than three interactions"
        found.append(
            f"{_percent((users - test) / users)} of {users:,} users have no test target ({why}): figures say nothing "
            "about them"
        )
    cold = _target_share(stats, "cold_targets")
    if cold >= NOTABLE:
        found.append(
            f"{_percent(cold)} of the test targets are items without a training interaction, which a policy of item "
            "ids cannot learn: figures count them as missed, mostly"
        )
    without, both = stats.get("without_training", {}), (("users", users), ("items", stats.get("items", 0)))
    later = [f"{without[name]:,} {name}" for name, total in both if total and without.get(name, 0) / total >= NOTABLE]
    if later and by_time:
        found.append(f"{' and '.join(later)} have no training interaction: they only appear later")
    return found


def _target_share(stats: dict[str, Any], key: str, fold: str = "test") -> float:
    counts: dict[str, int | None] = stats.get("held_out", {}).get(fold, {})
    return (counts.get(key) or 0) / max(counts.get("users") or 0, 1)


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"
