"""Stage `champion`: with `sft.init: champion`, fetch it from the registry; writes models/champion.

It depends on the prepared data: the champion of the moment is taken when the data have changed, and stays the start of
every later run on them. Without new data nothing trains again.
"""

from pathlib import Path

import rl4rec._script  # noqa: F401 - before all that starts threads
from rl4rec._stage import run_stage
from rl4rec.ops.champion import fetch_champion, no_champion
from rl4rec.params import Params

OUT = Path("models/champion")


def main(params: Params) -> None:
    if params.sft.init == "champion":
        fetch_champion(params.tracking, OUT, held_out="training" in (params.sft.feedback, params.rl.feedback))
    else:
        no_champion(OUT, "sft.init: fresh")


if __name__ == "__main__":
    run_stage(main)
