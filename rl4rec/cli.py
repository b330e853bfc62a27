"""The `rl4rec` command. Heavy libraries are imported by the command that needs them: a typo is reported at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from rl4rec.errors import UserError, shown
from rl4rec.messages import debugging, redact, report
from rl4rec.params import Trained, load_params, load_settings

if TYPE_CHECKING:
    from rl4rec.recommender import Recommender

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

ParamsPath = Annotated[Path, typer.Argument(help="The settings to check.")]
Root = Annotated[Path, typer.Option("--root", help="The folder with dvc.yaml and params.yaml.")]
Model = Annotated[str, typer.Option(help="A folder such as models/grpo, or a model of MLflow.")]


@app.callback()
def describe(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also: RL4REC_DEBUG=1).")
    ] = False,
) -> None:
    """Train a language-model recommender on the metric it is judged by."""
    if debug:
        os.environ["RL4REC_DEBUG"] = "1"


@app.command()
def check_params(path: ParamsPath = Path("params.yaml")) -> None:
    """Validate the settings and print them with every default filled in."""
    import yaml
    from rich.console import Console
    from rich.syntax import Syntax

    settings = redact(yaml.safe_dump(load_params(path).model_dump(mode="json"), sort_keys=False))
    Console().print(Syntax(settings, "yaml", background_color="default"))


@app.command()
def check_dvc(root: Root = Path()) -> None:
    """Check that dvc.yaml lists exactly the settings and the code that each stage uses."""
    from rl4rec.consistency import check_dvc as find_problems

    problems = find_problems(root.resolve())
    if problems:
        raise UserError("\n".join(problems))
    typer.echo("dvc.yaml agrees with the pipeline scripts and params.yaml")


@app.command()
def workspace(
    folder: Annotated[Path, typer.Argument(help="The folder to make, a DVC project of its own.")],
    overrides: Annotated[Path, typer.Option(help="Settings that differ from params.yaml.")] = Path("demo.yaml"),
    root: Root = Path(),
) -> None:
    """Make (or refresh) a folder that runs the same pipeline with other settings, apart from the committed results."""
    from rl4rec.workspace import make_workspace

    make_workspace(root.resolve(), folder.resolve(), overrides)
    typer.echo(f"workspace: {folder}")


@app.command()
def collect_refit(
    folder: Annotated[Path, typer.Argument(help="The workspace that ran with `feedback: latest`.")] = Path(".refit"),
    root: Root = Path(),
) -> None:
    """Copy the refit's metrics to metrics/refit, marked: their validation targets were trained on."""
    from rl4rec.evaluation.files import write_json
    from rl4rec.json_files import read_json

    for policy in ("sft", "sft_continued", "ppo", "grpo"):
        source, target = folder / "metrics" / f"{policy}.json", root / "metrics" / "refit" / f"{policy}.json"
        found = read_json(source, then="Run `make refit`.")
        try:
            found["protocol"]["feedback"] = "latest"  # so the figures of fold `valid` are those of training targets
            k, n = found["protocol"]["k"][-1], found["protocol"]["negatives"]["n"]
            full, sampled = (float(found["test"][name][f"ndcg@{k}"]) for name in ("full", f"sampled{n}"))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{source}: not an evaluation ({error!r}). Run `make refit`.") from None
        write_json(target, found)
        typer.echo(f"{target}: test NDCG@{k} full {full:.4f}, sampled {sampled:.4f}")


@app.command()
def sweep(
    settings: Annotated[Path, typer.Option(help="Which stage, over which settings.")] = Path("sweep.yaml"),
    root: Root = Path(),
) -> None:
    """Search settings of one stage by its validation, with Optuna; run again, it goes on where it stopped."""
    from rich.console import Console

    from rl4rec.stage import set_up_process
    from rl4rec.sweep.results import advice, sweep_table
    from rl4rec.sweep.settings import SweepParams
    from rl4rec.sweep.study import FOLDER, run_sweep

    set_up_process()
    sweep_params = load_settings(settings, SweepParams)
    rows = run_sweep(root.resolve(), sweep_params, settings)
    console = Console()
    console.print(sweep_table(rows, sweep_params))
    console.print(advice(rows, root / FOLDER), soft_wrap=True, highlight=False)


@app.command()
def charts(root: Root = Path()) -> None:
    """Print the last results as Mermaid charts, for the page of a CI job or a merge request."""
    from rl4rec.summary import charts as draw

    typer.echo(draw(root))


@app.command()
def show_comparison(root: Root = Path()) -> None:
    """Print the comparison table of the last `dvc repro`, and where the report and the MLflow UI are."""
    from rich.console import Console

    from rl4rec.json_files import read_json
    from rl4rec.report import comparison_table

    file = root / "metrics" / "comparison.json"
    again = f"Run `dvc repro compare` in {root.resolve()}."
    comparison = read_json(file, then=again)
    try:
        table = comparison_table(comparison)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{file}: not a comparison ({error!r}). {again}") from None
    console = Console()
    console.print(table)
    folder = "" if root == Path() else f" DIR={root}"
    report = (root / "reports" / "comparison.html").resolve()
    console.print(
        f"Report:     {report}\nMLflow UI:  make ui{folder}   then open http://127.0.0.1:5000", soft_wrap=True
    )


@app.command()
def ingest(
    file: Annotated[Path, typer.Argument(help="New interactions: CSV, TSV, JSON lines or parquet.")],
    root: Root = Path(),
) -> None:
    """Add new interactions to the folder that data.path names; `dvc repro` then retrains."""
    params = load_params(root / "params.yaml")
    if params.data.source != "interactions" or params.data.path is None:
        raise UserError("params.yaml: data.source must be interactions, and data.path the folder that holds them")
    from rl4rec.data.ingest import ingest as add

    found = add(file, root / params.data.path, params.data.columns)
    if found.part is None:
        typer.echo(f"{file}: nothing new, all {found.known} interactions are in the store")
    else:
        typer.echo(f"{found.part}: {found.added} interactions added ({found.known} were there already)")


@app.command()
def monitor(
    incoming: Annotated[Path | None, typer.Option(help="Interactions since training, a table as for `ingest`.")] = None,
    served: Annotated[Path | None, typer.Option(help="Lists that were shown, as `recommend` writes them.")] = None,
    policy: Annotated[str, typer.Option(help="Whose evaluation served lists are compared with.")] = "grpo",
    out: Annotated[Path, typer.Option(help="The JSON file to write.")] = Path("reports/drift.json"),
    root: Root = Path(),
) -> None:
    """Say whether retraining is due: compare new interactions and served lists with the training data.

    Exit status: 0 due, 3 not due, 2 an error to act on.
    """
    params = load_params(root / "params.yaml")
    if incoming is None and served is None:
        raise UserError("nothing to compare: give --incoming, --served or both")
    from rl4rec.data.prepared import load_prepared
    from rl4rec.data.sources.interactions import read_interactions
    from rl4rec.drift import measure_drift, read_evaluated, read_served
    from rl4rec.evaluation.files import write_json

    evaluated = None
    if served is not None:
        _check_policy(policy)
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


@app.command()
def recommend(
    users: Annotated[Path, typer.Option(help="Parquet or JSON lines with a column `history` of lists of item ids.")],
    out: Annotated[Path, typer.Option(help="The parquet file to write.")],
    model: Model = "models:/rl4rec@champion",
    k: Annotated[int, typer.Option(help="Length of the lists.")] = 10,
    root: Root = Path(),
) -> None:
    """Write the k best items for every history of a file, with their scores."""
    import time

    recommender = _recommender(model, root)
    from rl4rec.batch_scoring import recommend_file

    since = time.perf_counter()
    count = recommend_file(recommender, users, out, k=k)
    seconds = time.perf_counter() - since
    typer.echo(f"{out}: {count} lists in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} a second)")


@app.command()
def serve(
    model: Model = "models:/rl4rec@champion",
    host: Annotated[str, typer.Option(help="The address to listen on; the default is this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 5001,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a connection without an answer is cut.")] = 30,
    root: Root = Path(),
) -> None:
    """Answer POST /invocations over HTTP, like `mlflow models serve`, with every request checked and bounded."""
    recommender = _recommender(model, root)
    from rl4rec.server import listen, run

    with listen(host, port) as socket:
        typer.echo(f"{model} on http://{host}:{socket.getsockname()[1]}/invocations")
        run(recommender, socket, timeout=timeout)


@app.command()
def promote(
    policy: Annotated[str | None, typer.Option(help="Which one; default: the best on validation.")] = None,
    root: Root = Path(),
) -> None:
    """Register the best policy of the last `dvc repro`; make it champion if the gate of params.yaml lets it through.

    Exit status: 0 promoted, 3 refused, 2 an error to act on.
    """
    import contextlib

    params = load_params(root / "params.yaml")
    if policy is not None:
        _check_policy(policy)
    from rl4rec.registry.promotion import promote as promote_policy

    with contextlib.chdir(root):
        decision = promote_policy(Path(), params, policy=policy)
    for check in decision.checks:
        typer.echo(f"  {check}")
    typer.echo(f"{'promoted' if decision.promoted else 'refused'}: {decision.reason}")
    if not decision.promoted:
        raise typer.Exit(3)


@app.command()
def sync(path: ParamsPath = Path("params.yaml")) -> None:
    """Send to MLflow what it did not take while stages ran: it was away, or a stage was killed."""
    from rl4rec.tracking import sync as send
    from rl4rec.tracking import use_server

    tracking = load_params(path).tracking
    use_server(tracking, patient=True)
    count = send(tracking)
    typer.echo(f"sent what {count} runs had left" if count else "nothing was left to send")


@app.command()
def rollback(root: Root = Path()) -> None:
    """Give the champion's place back to the version it replaced."""
    import contextlib

    params = load_params(root / "params.yaml")
    from rl4rec.registry.promotion import roll_back

    with contextlib.chdir(root):
        earlier, now = roll_back(params)
    typer.echo(f"{params.tracking.registered_model}: champion is version {now} again, not {earlier}")


def _check_policy(name: str) -> None:
    known = get_args(Trained)
    if name not in known:  # it becomes a part of paths
        raise UserError(f"--policy: expected one of {', '.join(known)}, got {shown(name)}")


def _recommender(model: str, root: Path) -> Recommender:
    """The policy of a folder (whose vocabulary is that of the prepared data) or of MLflow."""
    import tempfile

    params = load_params(root / "params.yaml")
    from rl4rec.recommender import load_recommender

    if not model.startswith(("models:", "runs:")):
        return load_recommender(Path(model), root / "data" / "prepared" / "items.parquet")
    from rl4rec.registry.download import download_policy
    from rl4rec.tracking import use_server

    use_server(params.tracking, root, patient=True)
    with tempfile.TemporaryDirectory() as scratch:
        return load_recommender(*download_policy(model, Path(scratch)))


def main() -> None:
    """Run the command; a user's mistake becomes a message on stderr and exit status 2."""
    try:
        app()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise  # not about a file that the user could mend
        report(error, debug=debugging())
        sys.exit(2)
