"""Commands about MLflow: the champion of the registry, and what the server has not taken yet."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from rl4rec.cli.app import REGISTRY, ParamsPath, Root, app, check_policy, complete_policy, epilog
from rl4rec.settings import load_params


@app.command(
    rich_help_panel=REGISTRY,
    epilog=epilog("rl4rec promote --policy grpo", "0 promoted, 3 refused, 2 an error to act on"),
)
def promote(
    policy: Annotated[
        str | None,
        typer.Option(help="Which one; default: the best on validation.", autocompletion=complete_policy),
    ] = None,
    root: Root = Path(),
) -> None:
    """Register the best policy; make it champion if it is better.

    The gate of params.yaml (`compare.gate`) decides.

    Needs the results of the last `dvc repro` and MLflow. Writes a run, a model version and, if promoted, the alias
    `champion` to MLflow.
    """
    params = load_params(root / "params.yaml")
    if policy is not None:
        check_policy(policy)
    from rl4rec.ops.promote import promote as promote_policy

    with contextlib.chdir(root):
        decision = promote_policy(Path(), params, policy=policy)
    for check in decision.checks:
        typer.echo(f"  {check}")
    typer.echo(f"{'promoted' if decision.promoted else 'refused'}: {decision.reason}")
    if not decision.promoted:
        raise typer.Exit(3)


@app.command(rich_help_panel=REGISTRY, epilog=epilog("rl4rec rollback"))
def rollback(root: Root = Path()) -> None:
    """Make the version that was champion before champion again.

    Needs MLflow with a champion that replaced another. Writes the alias `champion` to MLflow.
    """
    params = load_params(root / "params.yaml")
    from rl4rec.ops.promote import roll_back

    with contextlib.chdir(root):
        earlier, now = roll_back(params)
    typer.echo(f"{params.tracking.registered_model}: champion is version {now} again, not {earlier}")


@app.command(rich_help_panel=REGISTRY, epilog=epilog("rl4rec sync"))
def sync(path: ParamsPath = Path("params.yaml")) -> None:
    """Send to MLflow what it did not take while stages ran.

    It was away, or a stage was killed.

    Needs MLflow. Sends .rl4rec/outbox, and removes there what was taken.
    """
    from rl4rec.ops.tracking import sync as send
    from rl4rec.ops.tracking import use_server

    tracking = load_params(path).tracking
    use_server(tracking, patient=True)
    count = send(tracking)
    typer.echo(f"sent what {count} runs had left" if count else "nothing was left to send")
