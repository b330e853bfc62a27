"""Commands about experiments and their results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rl4rec.algorithms import trained_keys
from rl4rec.cli.app import RESULTS, Root, app, epilog
from rl4rec.errors import UserError
from rl4rec.settings import load_settings


@app.command(rich_help_panel=RESULTS, epilog=epilog("rl4rec show-comparison --root .demo"))
def show_comparison(root: Root = Path()) -> None:
    """Print the comparison of the last `dvc repro`.

    Says too where the report and the MLflow UI are.

    Needs metrics/comparison.json. Writes nothing.
    """
    from rich.console import Console

    from rl4rec._io import read_json
    from rl4rec.report import comparison_table

    file = root / "metrics" / "comparison.json"
    again = f"Run `dvc repro compare` in {root.resolve()}."
    comparison = read_json(file, then=again)
    console = Console()
    try:
        table = comparison_table(comparison, width=console.width)
        odd = [str(sentence) for sentence in comparison["protocol"].get("odd", [])]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{file}: not a comparison ({error!r}). {again}") from None
    console.print(table)
    for sentence in odd:
        console.print(f"Notable:    {sentence}", soft_wrap=True, markup=False)
    folder = "" if root == Path() else f" DIR={root}"
    report = (root / "reports" / "comparison.html").resolve()
    where = report if report.is_file() else f"none here yet; dvc repro writes {report}"
    console.print(f"Report:     {where}\nMLflow UI:  make ui{folder}   prints the address to open", soft_wrap=True)


@app.command(rich_help_panel=RESULTS, epilog=epilog("rl4rec charts >> $GITHUB_STEP_SUMMARY"))
def charts(root: Root = Path()) -> None:
    """Print the results as Mermaid charts, for a CI job's page.

    Needs metrics/comparison.json; the curves need logs/*.jsonl. Writes nothing.
    """
    from rl4rec.report.charts import charts as draw

    typer.echo(draw(root))


@app.command(rich_help_panel=RESULTS, epilog=epilog("rl4rec sweep --settings sweep.yaml"))
def sweep(
    settings: Annotated[Path, typer.Option(help="Which stage, over which settings.")] = Path("sweep.yaml"),
    root: Root = Path(),
) -> None:
    """Search settings of one stage, with Optuna.

    Trials are judged by validation. Run again, it goes on where it stopped.

    Needs the results of the stages before the one that is searched. Writes .sweep/trials.json and .sweep/best.yaml.
    """
    from rich.console import Console

    from rl4rec.ops.sweep.results import advice, sweep_table
    from rl4rec.ops.sweep.settings import SweepParams
    from rl4rec.ops.sweep.study import FOLDER, run_sweep

    sweep_params = load_settings(settings, SweepParams)
    rows = run_sweep(root.resolve(), sweep_params, settings)
    console = Console()
    console.print(sweep_table(rows, sweep_params))
    console.print(advice(rows, root / FOLDER), soft_wrap=True, highlight=False)


@app.command(rich_help_panel=RESULTS, epilog=epilog("rl4rec collect-refit .refit"))
def collect_refit(
    folder: Annotated[Path, typer.Argument(help="The workspace that ran with `feedback: latest`.")] = Path(".refit"),
    root: Root = Path(),
) -> None:
    """Copy the metrics of a refit to metrics/refit.

    They are marked: their validation targets were trained on.

    Needs a refit (`make refit`). Writes metrics/refit/POLICY.json.
    """
    from rl4rec._io import read_json, write_json
    from rl4rec.metrics import metric_key

    for policy in trained_keys():
        source, target = folder / "metrics" / f"{policy}.json", root / "metrics" / "refit" / f"{policy}.json"
        found = read_json(source, then="Run `make refit`.")
        try:
            found["protocol"]["feedback"] = "latest"  # so the figures of fold `valid` are those of training targets
            k, n = found["protocol"]["k"][-1], found["protocol"]["negatives"]["n"]
            keys = (metric_key("test", protocol, "ndcg", k) for protocol in ("full", f"sampled{n}"))
            full, sampled = (float(found["metrics"][key]) for key in keys)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(f"{source}: not an evaluation ({error!r}). Run `make refit`.") from None
        write_json(target, found)
        typer.echo(f"{target}: test NDCG@{k} full {full:.4f}, sampled {sampled:.4f}")
