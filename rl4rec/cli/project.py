"""Commands about the project: its settings, its pipeline, and workspaces beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl4rec._console import redact
from rl4rec.cli.app import PROJECT, ParamsPath, Root, app, epilog
from rl4rec.errors import UserError
from rl4rec.settings import load_params


@app.command(rich_help_panel=PROJECT, epilog=epilog("rl4rec check-params params.yaml"))
def check_params(path: ParamsPath = Path("params.yaml")) -> None:
    """Check the settings, and print them with every default.

    Needs params.yaml or the file named. Writes nothing.
    """
    import yaml
    from rich.console import Console
    from rich.syntax import Syntax

    settings = redact(yaml.safe_dump(load_params(path).model_dump(mode="json"), sort_keys=False))
    Console().print(Syntax(settings, "yaml", background_color="default"))


@app.command(rich_help_panel=PROJECT, epilog=epilog("rl4rec check-dvc"))
def check_dvc(root: Root = Path()) -> None:
    """Check that dvc.yaml lists what each stage uses.

    Compares the settings and the code that each script uses with dvc.yaml, and names what to add or to remove.

    Needs the project's dvc.yaml, params.yaml, pipelines/ and rl4rec/. Writes nothing.
    """
    from rl4rec._dvc import check_dvc as find_problems

    problems = find_problems(root.resolve())
    if problems:
        raise UserError("\n".join([*problems, "Change dvc.yaml as the lines above say, then check again."]))
    typer.echo("dvc.yaml agrees with the pipeline scripts and params.yaml")


@app.command(rich_help_panel=PROJECT, epilog=epilog("rl4rec workspace .demo --overrides demo.yaml"))
def workspace(
    folder: Annotated[Path, typer.Argument(help="The folder to make, a DVC project of its own.")],
    overrides: Annotated[Path, typer.Option(help="Settings that differ from params.yaml.")] = Path("demo.yaml"),
    root: Root = Path(),
) -> None:
    """Make a folder that runs the pipeline with other settings.

    Results there are apart from the project's own; `dvc repro` in it runs the pipeline.

    Needs the project and a file of overrides. Writes the folder; one that is there is refreshed and keeps its results.
    """
    from rl4rec.ops.workspace import make_workspace

    make_workspace(root.resolve(), folder.resolve(), overrides)
    typer.echo(f"workspace: {folder}")
