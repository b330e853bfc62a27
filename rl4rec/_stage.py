"""What every script and command does around its work: read the params, set up logging, report a user's mistake.

Exit statuses: 0 done, 1 a fault of the program, 2 an error to act on, 130 interrupted (and 3 from commands that may
refuse).

A script ends with `run_stage(main)`, which calls `main(params)`, or with `run_variant_stage(main, ("ppo", "grpo"))`,
which calls `main(params, "ppo")` for `python pipelines/rl.py ppo`. One that trains says `distributed=True`: where there
are several GPUs it starts a process for each (`rl4rec._launch`).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NoReturn

from rl4rec import _launch
from rl4rec._console import (
    LogHandler,
    choose_verbosity,
    debugging,
    explain,
    outlive_readers,
    report,
    traced,
    verbosity,
    wiped_out,
)
from rl4rec._experiment import seen_from_here
from rl4rec._process import is_main_process, limit_reached, only_one
from rl4rec.errors import UserError
from rl4rec.params import Params
from rl4rec.settings import load_params

_LEVELS = {  # of this project, of libraries
    "quiet": (logging.WARNING, logging.WARNING),
    "normal": (logging.INFO, logging.WARNING),
    "verbose": (logging.DEBUG, logging.INFO),
}
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


def run_stage(main: Callable[[Params], None], *, distributed: bool = False) -> None:
    """Run `main` with the params of `--params PATH` (default `params.yaml`), once at a time in a folder.

    A `UserError`, a file that the system refuses, and memory or disk used up become a message on stderr and exit
    status 2, with the traceback if `--debug` or `RL4REC_DEBUG=1` asks for it; an interruption exits with 130.

    Args:
        main: the work.
        distributed: it can be shared by processes: there is one for each GPU, or as many as `RL4REC_PROCESSES` says.
    """
    arguments = _parser().parse_args()
    _run(arguments, Path(sys.argv[0]).stem, main, distributed=distributed)


def run_variant_stage(
    main: Callable[[Params, str], None], variants: Sequence[str], *, distributed: bool = False
) -> None:
    """As `run_stage`, for a script whose first argument chooses one of `variants`, which `main` gets second."""
    parser = _parser()
    parser.add_argument("variant", choices=list(variants))
    arguments = parser.parse_args()
    name = f"{Path(sys.argv[0]).stem} {arguments.variant}"
    _run(arguments, name, lambda params: main(params, arguments.variant), distributed=distributed)


def set_up_process() -> None:
    """Libraries that are quiet enough, and a log on stderr, without secrets.

    This project is logged from INFO on and libraries from WARNING on; quiet: WARNING and WARNING, verbose: DEBUG and
    INFO (`rl4rec._console.verbosity`).
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ours, theirs = _LEVELS[verbosity()]
    if not is_main_process():  # the main one tells the same
        ours = theirs = logging.ERROR
        warnings.simplefilter("ignore")
    if theirs < logging.WARNING:  # those that have a log of their own
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "info")
    logging.basicConfig(level=theirs, handlers=[LogHandler()])
    logging.getLogger("rl4rec").setLevel(ours)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(theirs, logging.INFO))
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)  # says that tied weights are saved once
    # TRL 1.16 reads a property that transformers 5.23 has renamed: nothing that a user can act on.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


@contextlib.contextmanager
def reported(name: str, *, debug: Callable[[], bool] = debugging) -> Generator[None]:
    """Turn what ends the block into a message and an exit status.

    A `UserError`, a file that the system refuses, and memory or disk used up exit with 2, an interruption with 130. A
    fault of the program is raised on: Python prints its traceback and exits with 1.

    Args:
        name: of the stage or command, for `limit_reached`.
        debug: whether a mistake is shown with its traceback.
    """
    try:
        with wiped_out():
            yield
    except KeyboardInterrupt:
        if _launch.launched():
            _launch.hand_over(130, "interrupted")
        else:
            sys.stderr.write("interrupted\n")
        sys.exit(130)
    except Exception as error:
        limit = limit_reached(error, name)
        if limit is not None:
            _fail(UserError(limit).with_traceback(error.__traceback__), debug=debug())
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.filename is not None):
            _fail(error, debug=debug())
        if _launch.launched():
            _launch.hand_over(1, trace="".join(traceback.format_exception(error)))
            sys.exit(1)
        raise  # a fault of the program, not something that a user could mend


def _fail(error: Exception, *, debug: bool) -> NoReturn:
    if _launch.launched():
        _launch.hand_over(2, explain(error), traced(error) if debug else "")
    else:
        report(error, debug=debug)
    sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        epilog="Exit status: 0 done, 1 a fault of the program, 2 an error to act on, 130 interrupted.",
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings (default: %(default)s)")
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="only warnings, errors and results (also: RL4REC_LOG=quiet)"
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="details, of libraries too (also: RL4REC_LOG=verbose)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error (also: RL4REC_DEBUG=1)")
    return parser


def _run(
    arguments: argparse.Namespace, name: str, main: Callable[[Params], None], *, distributed: bool = False
) -> None:
    outlive_readers()
    if _launch.launched():
        _launch.follow_launcher()
    with reported(name, debug=lambda: arguments.debug or debugging()):
        choose_verbosity(quiet=arguments.quiet, verbose=arguments.verbose)
        set_up_process()
        with only_one(name) if is_main_process() and not _launch.launched() else contextlib.nullcontext():
            params = seen_from_here(load_params(arguments.params))
            processes = _launch.count_processes() if distributed else 1
            if processes > 1:
                sys.exit(_launch.launch(name, processes))
            main(params)
            _launch.leave_group()
