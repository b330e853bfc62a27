"""What every pipeline script does around its work: read the params, set up logging, report a user's mistake.

A script ends with `run_stage(main)`, which calls `main(params)`, or with `run_variant_stage(main, ("ppo", "grpo"))`,
which calls `main(params, "ppo")` for `python pipelines/rl.py ppo`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from rl4rec.distributed import is_main_process
from rl4rec.errors import UserError
from rl4rec.machine_limits import limit_reached, only_one
from rl4rec.messages import RedactingFormatter, debugging, report
from rl4rec.params import Params, load_params

_NOISY = (
    "accelerate",
    "alembic",
    "httpx",
    "httpcore",
    "urllib3",
    "filelock",
    "fsspec",
    "matplotlib",
    "mlflow.store",
    "git",
)


def run_stage(main: Callable[[Params], None]) -> None:
    """Run `main` with the params of `--params PATH` (default `params.yaml`), once at a time in a folder.

    A `UserError`, a file that the system refuses, and memory or disk used up become a message on stderr and exit
    status 2, with the traceback if `--debug` or `RL4REC_DEBUG=1` asks for it; an interruption exits with 130.
    """
    arguments = _parser().parse_args()
    _run(arguments, Path(sys.argv[0]).stem, main)


def run_variant_stage(main: Callable[[Params, str], None], variants: Sequence[str]) -> None:
    """As `run_stage`, for a script whose first argument chooses one of `variants`, which `main` gets second."""
    parser = _parser()
    parser.add_argument("variant", choices=list(variants))
    arguments = parser.parse_args()
    name = f"{Path(sys.argv[0]).stem} {arguments.variant}"
    _run(arguments, name, lambda params: main(params, arguments.variant))


def set_up_process() -> None:
    """Quiet libraries; log to stderr, without secrets: this project from INFO on, chatty libraries from WARNING on."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # says that tied weights are saved once
    # TRL 1.16 reads a property that transformers 5.23 has renamed: nothing that a user can act on.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (also: RL4REC_DEBUG=1)")
    return parser


def _run(arguments: argparse.Namespace, name: str, main: Callable[[Params], None]) -> None:
    set_up_process()
    debug = arguments.debug or debugging()
    try:
        with only_one(name) if is_main_process() else contextlib.nullcontext():
            main(load_params(arguments.params))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    except Exception as error:
        limit = limit_reached(error, name)
        if limit is not None:
            report(UserError(limit).with_traceback(error.__traceback__), debug=debug)
        elif isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None):
            report(error, debug=debug)
        else:
            raise  # a fault of the program, not something that a user could mend
        sys.exit(2)
