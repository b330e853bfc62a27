"""What only a GPU can show, checked and measured in minutes: `make gpu`.

It needs torch, transformers, accelerate, peft, pydantic and numpy, and neither an installation of this project nor its
data: on a bare machine `python benchmarks/gpu.py` is enough. The parts are in `gpu_checks.py` and `gpu_speed.py`. What
fails is named, and the exit status is 1; the result goes to `benchmarks/results/gpu-<device>.json`, which docs/scale.md
shows. `--device cpu --small` runs all that needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

import gpu_checks  # noqa: E402
import gpu_speed  # noqa: E402
from gpu_checks import Setting  # noqa: E402

Result = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One part of the run; its result has `ok`, and `failed` names what is not as it should be."""

    number: int
    title: str
    run: Callable[[Setting], Result]
    cuda_only: bool = False


PARTS = (
    Part(1, "machine", gpu_checks.machine),
    Part(2, "CPU against device", gpu_checks.agreement),
    Part(3, "training on both", gpu_checks.training),
    Part(4, "the same twice", gpu_checks.determinism),
    Part(5, "interrupted and resumed", gpu_checks.resuming),
    Part(10, "served = evaluated", gpu_checks.serving),
    Part(9, "out of memory", gpu_checks.out_of_memory, cuda_only=True),
    Part(6, "waits of the host", gpu_speed.waits, cuda_only=True),
    Part(8, "a policy as wide as GPT-2", gpu_speed.wide),
    Part(7, "speed and memory", gpu_speed.speed),
)


def run_parts(parts: list[Part], setting: Setting, seconds: float, out: Path) -> bool:
    """Run parts while there is time, write the file after each; whether all that ran are right."""
    started = time.perf_counter()
    found: Result = {"device": setting.name, "small": setting.small, "parts": {}, "not_run": {}}
    for part in parts:
        spent = time.perf_counter() - started
        reason = None
        if part.cuda_only and setting.device.type != "cuda":
            reason = "needs a CUDA device"
        elif spent > seconds:
            reason = f"the {seconds:.0f} seconds were used up"
        if reason is not None:
            found["not_run"][part.title] = reason
            print(f"({part.number}) {part.title}: not run: {reason}", flush=True)
        else:
            setting.until = started + seconds
            found["parts"][part.title] = result = _run(part, setting)
            state = "ok" if result["ok"] else f"FAILED: {'; '.join(result['failed'])}"
            print(f"({part.number}) {part.title}: {state} ({result['seconds']} s)", flush=True)
        found["seconds"] = round(time.perf_counter() - started, 1)
        _write(out, found)
    return all(result["ok"] for result in found["parts"].values())


def _run(part: Part, setting: Setting) -> Result:
    before = time.perf_counter()
    try:
        result = part.run(setting)
    except Exception as error:  # the other parts are worth their time
        result = {
            "failed": [f"{type(error).__name__}: {str(error)[:500]}"],
            "traceback": traceback.format_exc()[-3000:],
        }
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
    failed = result.setdefault("failed", [])
    return {"ok": not failed, "seconds": round(time.perf_counter() - before, 1), **result}


def _write(path: Path, content: Result) -> None:
    draft = path.with_name(path.name + ".partial")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="sizes at which a CPU has done in a minute")
    parser.add_argument("--seconds", type=float, default=450.0, help="start no part after that (default: %(default)s)")
    parser.add_argument("--parts", help="numbers of some parts, such as 1,2,5")
    parser.add_argument("--out", type=Path, help="the file (default: benchmarks/results/gpu-<device>.json)")
    arguments = parser.parse_args()
    setting = Setting(torch.device(arguments.device), small=arguments.small)
    wanted = {int(number) for number in arguments.parts.split(",")} if arguments.parts else None
    parts = [part for part in PARTS if wanted is None or part.number in wanted]
    if arguments.device == "cpu" and arguments.out is None:
        sys.exit(
            "no CUDA device: there is nothing to commit. Try the parts that need none: --device cpu --small --out FILE"
        )
    slug = re.sub(r"[^a-z0-9]+", "-", setting.name.lower()).strip("-")
    out = arguments.out or ROOT / "benchmarks" / "results" / f"gpu-{slug}.json"
    warnings.simplefilter("default")
    sound = run_parts(parts, setting, arguments.seconds, out)
    print(f"written: {out}")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
