"""What the READMEs show of the committed results: `make figures` fills it in, `make check` compares it.

Between `<!-- made: NAME -->` and `<!-- end: NAME -->` stand tables that are made from `metrics/` and
`benchmarks/results/`, and the list of files from the first lines of the modules. The picture carries a digest of the
figures in it.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from readme_words import FIGURES, SPEED, STUDY, STUDY_PATTERNS, WORDS

from rl4rec.algorithms import START, Policy, evaluated_keys, get_policy, trained_keys
from rl4rec.metrics import metric_key
from rl4rec.report.study import study_tables
from rl4rec.report.table import headline_metrics

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    "README.md": "en",
    "README.ko.md": "ko",
    "docs/ko/PPO_vs_GRPO.md": "ko",
    "docs/scale.md": "en",
    "docs/protocols.md": "en",
}
PICTURE = ROOT / "docs" / "figures" / "result.png"
PAIRS = ("ppo_vs_sft", "grpo_vs_sft", "ppo_vs_sft_continued", "grpo_vs_sft_continued", "grpo_vs_ppo")
CHANGES = ("ppo_vs_sft", "grpo_vs_sft", "sft_continued_vs_sft")


def results(language: str) -> str:
    """Test figures of each policy and the differences, with intervals, of `metrics/`."""
    comparison = _json("metrics/comparison.json")
    columns = headline_metrics(comparison)
    words = WORDS[language]
    rows = ["| | " + " | ".join(title for _, title in columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    for policy in evaluated_keys():
        means = (f"{comparison['policies'][policy][key]['mean']:.4f}" for key, _ in columns)
        rows.append(f"| {get_policy(policy).label} | {' | '.join(means)} |")
    for pair in PAIRS:
        first, second = map(get_policy, pair.split("_vs_"))
        cells = (f"{comparison[pair][key]['delta']:+.4f} {_interval(comparison[pair][key])}" for key, _ in columns)
        rows.append(f"| {first.label} - {second.label} | {' | '.join(cells)} |")
    changes = []
    for protocol in ("full", "sampled"):
        key = columns[0 if protocol == "full" else 2][0]
        found = (f"{_first(pair).label} {_relative(comparison, pair, key)}" for pair in CHANGES)
        changes.append(f"{words[protocol]} {', '.join(found)}")
    coverage = ", ".join(
        f"{get_policy(policy).label} {comparison['policies'][policy]['test/full/coverage@10']['mean'] * 100:.0f} %"
        for policy in ("sft", "ppo", "grpo")
    )
    return "\n".join([*rows, "", f"- {words['changes']}: {'; '.join(changes)}.", f"- {words['coverage']}: {coverage}."])


def refit(language: str) -> str:
    """Test figures of the policies of `make refit`, of `metrics/refit/`."""
    found = []
    for policy in trained_keys():
        figures = _json(f"metrics/refit/{policy}.json")["metrics"]
        full, sampled = (figures[metric_key("test", protocol, "ndcg", 10)] for protocol in ("full", "sampled100"))
        found.append(f"{get_policy(policy).label} {full:.4f} / {sampled:.4f}")
    return f"{WORDS[language]['refit']}: {', '.join(found)}."


def speed(language: str) -> str:
    """Each hot path against its peer, of `benchmarks/results/`."""
    words = WORDS[language]
    rows = [f"| {words['what']} | {words['against']} | {words['ratio']} |", "|---|---|---:|"]
    for label, peer, (file, *keys), digits in SPEED:
        value = _json(f"benchmarks/results/{file}.json")
        for key in keys:
            value = value[key]
        rows.append(f"| {label[language]} | {peer[language]} | {value:.{digits}f}x |")
    return "\n".join(rows)


def study(_: str) -> str:
    """The tables of `metrics/study.json` in Korean; `make study` writes the English ones itself."""
    text = study_tables(_json("metrics/study.json"))
    return "\n" + re.sub(r"[^|\n]+", lambda cell: _korean(cell[0]), text)


def files(_: str) -> str:
    """Every module of the package and the scripts, each with the first sentence of its docstring."""
    rows = ["| file | |", "|---|---|"]
    for path in (*sorted((ROOT / "pipelines").glob("*.py")), *sorted((ROOT / "rl4rec").rglob("*.py"))):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if text is not None:
            line = re.split(r"(?<!et al)\.\s", " ".join(text.split("\n\n")[0].split()))[0].rstrip(".")
            rows.append(f"| `{path.relative_to(ROOT).as_posix()}` | {line.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def gpu(_: str) -> str:
    """What `make gpu` has found on each device, of `benchmarks/results/gpu-*.json`."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("gpu-*.json"))]
    if not found:
        return "Nothing yet: no part of this has run on a GPU."
    return "\n\n".join(_device(each) for each in found)


def _device(found: dict[str, Any]) -> str:
    """One device: what was right, what was not run, and what was measured."""
    versions = found["parts"].get("machine", {}).get("versions", {})
    about = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    lines = [f"**{found['device']}** ({about}), {found['seconds']:.0f} s:", "", "| part | |", "|---|---|"]
    for title, part in found["parts"].items():
        lines.append(f"| {title} | {'right' if part['ok'] else 'WRONG: ' + '; '.join(part['failed'])} |")
    lines += [f"| {title} | not run: {reason} |" for title, reason in found["not_run"].items()]
    lines += ["", "| step | milliseconds | peak memory, MiB |", "|---|---:|---:|"]
    steps = (part.get("steps", {}) for part in found["parts"].values())
    for name, values in (item for each in steps for item in each.items()):
        if isinstance(values, dict):
            speed = f"{values['ms']:g}" if "ms" in values else f"{values['users_per_second']:,} users/s"
            lines.append(f"| {name} | {speed} | {values.get('peak_memory_mb', '')} |")
        else:
            lines.append(f"| {name} | {values} | |")
    waits = found["parts"].get("waits of the host", {}).get("per_step", {})
    if waits:
        lines += ["", "| per step | waits of the host | kernels | GPU busy |", "|---|---:|---:|---:|"]
        for name, values in waits.items():
            lines.append(f"| {name} | {values['waits']} | {values['kernels']} | {values['busy_share'] * 100:.0f} % |")
    return "\n".join(lines)


def ties(_: str) -> str:
    """What each order at equal times is worth, of `benchmarks/results/order.json`."""
    found = _json("benchmarks/results/order.json")
    rows = [_line("", "`row`, as it happened", "`hash`", "`item`"), "|---|---:|---:|---:|"]
    for experiment, policy, label in (
        ("noise", "sft", "noise, SFT"),
        ("baskets", "popularity", "shop with baskets, popularity"),
        ("baskets", "sft", "shop with baskets, SFT"),
        ("baskets", "oracle", "shop with baskets, the true distribution"),
    ):
        rows.append(_line(label, *(_spread(found[experiment][order].get(policy)) for order in ("row", "hash", "item"))))
    return "\n".join(rows)


def split(_: str) -> str:
    """Leave-one-out against one cut in time, of `benchmarks/results/order.json`."""
    found = _json("benchmarks/results/order.json")["split"]
    both = [found[name] for name in ("last_item", "time")]
    rows = [_line("", "`last_item`", "`time`"), "|---|---:|---:|"]
    for key, label in (("popularity", "popularity"), ("sft", "SFT"), ("oracle", "the true distribution")):
        rows.append(_line(f"NDCG@10, {label}", *(_spread(each[key]) for each in both)))
    rows.append(_line("test users", *(f"{each['test_users']['mean']:,.0f}" for each in both)))
    cold = (f"{each['cold_targets']['mean'] * 100:.1f} %" for each in both)
    return "\n".join([*rows, _line("test targets never taken in training", *cold)])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.3f} ± {value['sd']:.3f}"


MADE: dict[str, Callable[[str], str]] = {
    "results": results,
    "refit": refit,
    "speed": speed,
    "study": study,
    "files": files,
    "gpu": gpu,
    "ties": ties,
    "split": split,
}


def filled(text: str, language: str) -> str:
    """The page with every block made anew."""

    def fill(match: re.Match[str]) -> str:
        made = MADE[match[2]](language)
        if language == "ko":
            made = made.replace(" %", "%")  # Korean writes the sign without a space
        return f"{match[1]}\n{made}\n{match[3]}"

    return re.sub(r"(<!-- made: (\w+) -->)\n.*?(<!-- end: \2 -->)", fill, text, flags=re.S)


def draw(comparison: dict[str, Any], target: Path) -> None:
    """The result as one picture: change against the warm start with its interval, under both protocols."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 2.5), layout="constrained", facecolor="white")
    columns = headline_metrics(comparison)
    widest = 0.0
    for axes, (key, title) in zip(figure.subplots(1, 2, sharex=True, sharey=True), columns[::2], strict=True):
        base = comparison["policies"]["sft"][key]["mean"]
        for place, pair in enumerate(CHANGES):
            found, colour = comparison[pair][key], _first(pair).colour
            low, high = (100 * bound / base for bound in found["ci95"])
            middle = 100 * found["delta"] / base
            widest = max(widest, 1.2 * abs(low), 1.2 * abs(high))
            axes.plot([low, high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
            axes.plot([middle], [place], "o", color=colour, markersize=7)
            label = f"{middle:+.1f} %"
            axes.annotate(label, (middle, place), (0, 8), textcoords="offset points", ha="center", fontsize=9)
        axes.axvline(0, color=get_policy(START).colour, linestyle="--", linewidth=1.2)
        axes.set_title(f"{title}: SFT {base:.4f}", fontsize=10)
        axes.set_yticks(range(len(CHANGES)), [_first(pair).label for pair in CHANGES])
        axes.set_ylim(len(CHANGES) - 0.5, -0.8)
        axes.set_xlim(-widest, widest)
        axes.set_xlabel("change against SFT, %, with 95 % interval", fontsize=9)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, dpi=160, metadata={"Software": None, "Comment": _digest(comparison)})


def out_of_step() -> Iterator[str]:
    """Pages and pictures that are not what the committed results say."""
    for name, language in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if filled(text, language) != text:
            yield name
    digest = _digest(_json("metrics/comparison.json"))
    if not PICTURE.exists() or digest.encode() not in PICTURE.read_bytes():
        yield PICTURE.relative_to(ROOT).as_posix()


def _json(path: str) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def _korean(cell: str) -> str:
    """A cell or a line of the study's tables; the spaces around it stay."""
    text = cell.strip()
    found = STUDY.get(text)
    for pattern, korean in STUDY_PATTERNS:
        if re.fullmatch(pattern, text):
            found = re.sub(pattern, korean, text)
    if found is None and not FIGURES.fullmatch(text):
        sys.exit(f"no Korean for {text!r}: add it to STUDY in {Path(__file__).name}")
    return cell if found is None else cell.replace(text, found)


def _first(pair: str) -> Policy:
    """The policy of a pair that is compared with the other one."""
    return get_policy(pair.partition("_vs_")[0])


def _interval(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"[{low:+.4f}, {high:+.4f}]"


def _relative(comparison: dict[str, Any], pair: str, key: str) -> str:
    return f"{comparison[pair][key]['relative'] * 100:+.1f} %"


def _digest(comparison: dict[str, Any]) -> str:
    shown = [comparison[pair] for pair in CHANGES] + [comparison["policies"]["sft"]]
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what is out of step")
    if parser.parse_args().check:
        wrong = list(out_of_step())
        if wrong:
            sys.exit(f"not what the committed results say: {', '.join(wrong)}. Run `make figures`.")
        return
    for name, language in PAGES.items():
        path = ROOT / name
        path.write_text(filled(path.read_text(encoding="utf-8"), language), encoding="utf-8")
    draw(_json("metrics/comparison.json"), PICTURE)


if __name__ == "__main__":
    main()
