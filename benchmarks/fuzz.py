"""Coverage-guided fuzzing of everything that reads a file: inputs tried, and what went wrong.

    make fuzz                                   # every target, FUZZ_SECONDS (60) each
    python benchmarks/fuzz.py csv params        # some
    python benchmarks/fuzz.py --replay csv FILE # one input again, with the traceback

The targets and the oracle (read right, or a `UserError` and nothing left behind) are `tests/reliability/fuzz_targets`.
atheris (libFuzzer) mutates inputs towards unseen branches of the project's code and of PyYAML; each target runs in
processes of its own. An input that fails is kept in `.fuzz/crashes`; the run goes on after it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CRASHES, RESULTS = ROOT / ".fuzz" / "crashes", ROOT / "benchmarks" / "results" / "fuzz.json"
_MEMORY_MB, _SECONDS_AN_INPUT, _LARGEST = 4096, 20, 8192
_MOST_CRASHES = 5  # of a target, then the next one's turn


def fuzz(name: str, folder: Path, arguments: list[str]) -> None:
    """In a process of its own: fuzz one target until libFuzzer ends the process."""
    import logging

    import atheris

    with atheris.instrument_imports(include=["rl4rec", "yaml"]):
        from tests.reliability.fuzz_targets import TARGETS, attempt

    logging.disable(logging.CRITICAL)
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *arguments], lambda data: attempt(target, folder, data) and None)
    atheris.Fuzz()


def fuzz_for(name: str, seconds: float) -> dict[str, object]:
    """Fuzz a target for a while; inputs tried, branches reached, inputs that failed."""
    from tests.reliability.fuzz_targets import TARGETS
    from tests.reliability.workspace import make_workspace

    scratch = "/dev/shm" if Path("/dev/shm").is_dir() else None
    tried, reached, failed, end = 0, 0, [], time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=scratch, prefix="fuzz-") as place:
        folder, corpus = Path(place, "workspace"), Path(place, "corpus")
        folder.mkdir()
        corpus.mkdir()
        make_workspace(folder)
        for number, seed in enumerate(TARGETS[name].seeds(folder)):
            (corpus / f"seed{number}").write_bytes(seed)
        while (left := round(end - time.monotonic())) > 0 and len(failed) < _MOST_CRASHES:
            options = [f"-max_total_time={left}", f"-rss_limit_mb={_MEMORY_MB}", f"-timeout={_SECONDS_AN_INPUT}"]
            options += [f"-max_len={_LARGEST}", "-print_final_stats=1", f"-artifact_prefix={place}/", "-verbosity=1"]
            command = [sys.executable, __file__, "--target", name, "--folder", str(folder), *options, str(corpus)]
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False, env=environment()
            )
            executed = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
            counts = [int(count) for count in re.findall(r"^#(\d+)", done.stderr, re.M)]
            tried += int(executed[1]) if executed else max(counts, default=0)
            reached = max([reached, *map(int, re.findall(r"cov: (\d+)", done.stderr))])
            if done.returncode == 0:
                break
            failed.append(keep_crash(name, Path(place), done.stderr + done.stdout))
    return {"seconds": round(seconds), "inputs": tried, "branches": reached, "failed": failed}


def keep_crash(name: str, place: Path, output: str) -> str:
    """Move the failing input away from the scratch folder; the last line of what it raised."""
    CRASHES.mkdir(parents=True, exist_ok=True)
    for path in place.glob("*-*"):
        if path.is_file():
            (CRASHES / f"{name}-{path.name}").write_bytes(path.read_bytes())
            path.unlink()
    (CRASHES / f"{name}.log").write_text(output[-20_000:], encoding="utf-8")
    raised = re.findall(
        r"^(?:[\w.]+(?:Error|Exception|Warning|Invalid|Implemented)\b.*|.*ERROR: libFuzzer.*)$", output, re.M
    )
    return raised[0][:200] if raised else "the process ended"


def environment() -> dict[str, str]:
    """Of the fuzzing processes."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | quiet | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "PYTHONPATH": path}


def replay(name: str, file: Path) -> None:
    """Let a target have one input again."""
    from tests.reliability.fuzz_targets import TARGETS, attempt
    from tests.reliability.workspace import make_workspace

    with tempfile.TemporaryDirectory() as place:
        refusal = attempt(TARGETS[name], make_workspace(Path(place)), file.read_bytes())
    sys.stdout.write(f"refused: {refusal}\n" if refusal else "read\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS") or 60))
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay[0], Path(arguments.replay[1]))
        return
    from tests.reliability.fuzz_targets import TARGETS

    unknown = set(arguments.names) - set(TARGETS)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}. There are: {', '.join(TARGETS)}")
    found = {}
    for name in arguments.names or TARGETS:
        found[name] = fuzz_for(name, arguments.seconds)
        save({name: found[name]})
        sys.stdout.write(f"{name}: {json.dumps(found[name])}\n")
        sys.stdout.flush()
    if any(each["failed"] for each in found.values()):
        sys.exit(1)


def save(found: dict[str, dict[str, object]]) -> None:
    """Put the targets' figures into the results, beside those of the targets that did not run."""
    try:
        targets = json.loads(RESULTS.read_text(encoding="utf-8"))["targets"]
    except FileNotFoundError:
        targets = {}
    targets = dict(sorted((targets | found).items()))
    total = {key: sum(each[key] for each in targets.values()) for key in ("seconds", "inputs")}
    total["failed"] = sum(len(each["failed"]) for each in targets.values())
    versions = {name: importlib.metadata.version(name) for name in ("atheris", "polars", "pyyaml")}
    content = {"total": total, "versions": versions, "targets": targets}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--target"]:
        fuzz(sys.argv[2], Path(sys.argv[4]), sys.argv[5:])
    else:
        sys.path.insert(0, str(ROOT))  # for the targets, which the tests use too
        main()
