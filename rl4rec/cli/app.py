"""The application that the commands belong to: options of all commands, groups, and what several commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rl4rec import __version__
from rl4rec._console import choose_verbosity
from rl4rec._stage import set_up_process
from rl4rec.algorithms import trained_keys
from rl4rec.errors import UserError, shown

EXIT_STATUSES = (
    "Exit status: 0 done, 1 a fault of the program, 2 an error to act on, 3 refused or not due, 130 interrupted."
)
PROJECT, DATA, RESULTS = "The project", "Data", "Experiments and results"
REGISTRY, SERVING = "The model registry (MLflow)", "Recommendations"


class Commands(TyperGroup):
    """The commands; an unknown option is answered with what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what is given before the command."""
        with self._hints(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with self._hints(ctx):
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _hints(self, ctx: Any) -> Generator[None]:
        try:
            yield
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":
                self._explain(ctx, error)
            raise

    def _explain(self, ctx: Any, error: Any) -> None:
        option, near = error.option_name, error.possibilities
        error.possibilities = None
        if ctx.invoked_subcommand and option in {name for param in self.params for name in param.opts}:
            error.message += f". It comes before the command: rl4rec {option} {ctx.invoked_subcommand}"
        elif near:
            error.message += f". Did you mean {' or '.join(sorted(near))}?"


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # paragraphs are filled to the width of the terminal
    epilog="The pipeline itself is run by `dvc repro`. Every command, variable and output: docs/cli.md\n\n"
    + EXIT_STATUSES,
)

ParamsPath = Annotated[Path, typer.Argument(help="The file of settings.")]
Root = Annotated[Path, typer.Option("--root", help="The folder with dvc.yaml and params.yaml.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rl4rec {__version__}")
        raise typer.Exit


@app.callback()
def describe(
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only warnings, errors and the result (also: RL4REC_LOG=quiet).")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Details, of libraries too (also: RL4REC_LOG=verbose).")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also: RL4REC_DEBUG=1).")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train a language-model recommender on the metric it is judged by."""
    if debug:
        os.environ["RL4REC_DEBUG"] = "1"
    choose_verbosity(quiet=quiet, verbose=verbose)
    set_up_process()


def epilog(example: str, statuses: str = "") -> str:
    """The end of a command's help: an example, and exit statuses of its own."""
    return f"Example: `{example}`" + (f"\n\nExit status: {statuses}." if statuses else "")


def check_policy(name: str) -> None:
    """See that a policy's name is known: it becomes a part of paths.

    Raises:
        UserError: it is not.
    """
    known = trained_keys()
    if name not in known:
        raise UserError(f"--policy: expected one of {', '.join(known)}, got {shown(name)}")


def complete_policy(incomplete: str) -> list[str]:
    """Policies for shell completion."""
    return [name for name in trained_keys() if name.startswith(incomplete)]
