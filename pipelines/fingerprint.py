"""Fingerprint: names, sizes and digests of the raw files (`data/raw.json`), so that changed data is noticed."""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec._stage import run_stage
from rl4rec.data.fingerprint import write_fingerprint
from rl4rec.params import Params

OUT = Path("data/raw.json")


def main(params: Params) -> None:
    write_fingerprint(params.data, OUT)


if __name__ == "__main__":
    run_stage(main)
