"""The `rl4rec` command. Heavy libraries are imported by the command that needs them: a typo is reported at once."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
