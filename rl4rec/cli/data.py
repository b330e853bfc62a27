"""Commands about data: new interactions, and whether they call for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl4rec.algorithms import SHOWN
from rl4rec.cli.app import DATA, Root, app, check_policy, complete_policy, epilog
from rl4rec.errors import UserError
from rl4rec.settings import load_params


@app.command(rich_help_panel=DATA, epilog=epilog("rl4rec ingest delivery.csv"))
def ingest(
    file: Annotated[Path, typer.Argument(help="New interactions: CSV, TSV, JSON lines or parquet.")],
    root: Root = Path(),
) -> None:
    """Add new interactions to the folder of data.path.

    `dvc repro` then trains on them.

    Needs `data.source: interactions` in params.yaml. Writes a new table into the folder; interactions that are there
    already are left out.
    """
    params = load_params(root / "params.yaml")
    if params.data.source != "interactions" or params.data.path is None:
        raise UserError(
            f"{root / 'params.yaml'}: ingest needs data.source: interactions and data.path: the folder of the tables. "
            f"Set both: they are {params.data.source} and {params.data.path}"
        )
    from rl4rec.data.ingest import ingest as add

    found = add(file, root / params.data.path, params.data.columns)
    if found.part is None:
        typer.echo(f"{file}: nothing new, all {found.known} interactions are in the store")
    else:
        typer.echo(f"{found.part}: {found.added} interactions added ({found.known} left out: known, or twice)")


@app.command(
    rich_help_panel=DATA,
    epilog=epilog("rl4rec monitor --incoming delivery.csv", "0 due, 3 not due, 2 an error to act on"),
)
def monitor(
    incoming: Annotated[Path | None, typer.Option(help="Interactions since training, a table as for `ingest`.")] = None,
    served: Annotated[Path | None, typer.Option(help="Lists that were shown, as `recommend` writes them.")] = None,
    policy: Annotated[
        str,
        typer.Option(help="Whose evaluation served lists are compared with.", autocompletion=complete_policy),
    ] = SHOWN,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("reports/drift.json"),
    root: Root = Path(),
) -> None:
    """Say whether retraining is due.

    Compares new interactions and served lists with the training data, by the limits of params.yaml (`monitor`).

    Needs data/prepared, and for served lists metrics/POLICY.json. Writes reports/drift.json.
    """
    params = load_params(root / "params.yaml")
    if incoming is None and served is None:
        raise UserError("nothing to compare: give --incoming, --served or both")
    from rl4rec._io import write_json
    from rl4rec.data.dataset import load_prepared
    from rl4rec.data.sources.interactions import read_interactions
    from rl4rec.ops.drift import measure_drift, read_evaluated, read_served

    evaluated = None
    if served is not None:
        check_policy(policy)
        evaluated = read_evaluated(root / "metrics" / f"{policy}.json", k=params.rl.k)
    found = measure_drift(
        load_prepared(root / "data" / "prepared"),
        params.monitor,
        incoming=None if incoming is None else read_interactions(incoming, params.data.columns),
        served=None if served is None else read_served(served),
        evaluated=evaluated,
        k=params.rl.k,
    )
    write_json(root / out, found.as_dict())
    for signal in found.signals:
        typer.echo(f"  {signal}")
    typer.echo(f"retraining is {'due' if found.due else 'not due'}")
    if not found.due:
        raise typer.Exit(3)
