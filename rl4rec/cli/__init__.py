"""The `rl4rec` command. Heavy libraries are imported by the command that needs them: a typo is reported at once.

The modules add their commands to the application (`rl4rec.cli.app`) in the order in which `--help` lists them.
"""

from rl4rec.cli import project, data, results, registry, serving  # noqa: F401, I001 - the order of the commands
from rl4rec.cli.app import app
from rl4rec._console import outlive_readers
from rl4rec._stage import reported
from rl4rec._threads import choose_threads

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; a user's mistake becomes a message on stderr and exit status 2."""
    choose_threads()
    outlive_readers()
    with reported("rl4rec"):
        try:
            app(prog_name="rl4rec")
        except SystemExit as end:
            if end.code == 130:  # typer's status for an interruption, without a word
                raise KeyboardInterrupt from None
            raise
