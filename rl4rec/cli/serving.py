"""Commands that recommend: for the histories of a file, and over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rl4rec.cli.app import SERVING, Root, app, epilog
from rl4rec.errors import UserError, listed, shown
from rl4rec.settings import load_params

if TYPE_CHECKING:
    from rl4rec.serve.recommender import Recommender

CHAMPION = "models:/rl4rec@champion"


def _complete_model(incomplete: str) -> list[str]:
    folders = sorted(str(path.parent) for path in Path("models").glob("*/config.json"))
    return [name for name in (CHAMPION, *folders) if name.startswith(incomplete)]


Model = Annotated[
    str, typer.Option(help="A folder such as models/grpo, or a model of MLflow.", autocompletion=_complete_model)
]


@app.command(
    rich_help_panel=SERVING,
    epilog=epilog("rl4rec recommend --users histories.parquet --out lists.parquet --k 20"),
)
def recommend(
    users: Annotated[Path, typer.Option(help="Parquet or JSON lines with a column `history` of lists of item ids.")],
    out: Annotated[Path, typer.Option(help="The parquet file to write.")],
    model: Model = CHAMPION,
    k: Annotated[int, typer.Option(help="Length of the lists.")] = 10,
    root: Root = Path(),
) -> None:
    """Write the k best items for every history of a file.

    Needs a policy: the champion of MLflow or a folder. Writes a parquet file with the columns of the input
    except `history` and `exclude`, and `items`, `scores` and `unknown`.
    """
    import time

    recommender = _recommender(model, root)
    from rl4rec.serve.batch import recommend_file

    since = time.perf_counter()
    count = recommend_file(recommender, users, out, k=k)
    seconds = time.perf_counter() - since
    typer.echo(f"{out}: {count} lists in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f} a second)")


@app.command(rich_help_panel=SERVING, epilog=epilog("rl4rec serve --model models/grpo --port 5001"))
def serve(
    model: Model = CHAMPION,
    host: Annotated[str, typer.Option(help="The address to listen on; the default is this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 5001,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until a connection without an answer is cut.")] = 30,
    root: Root = Path(),
) -> None:
    """Answer requests for recommendations over HTTP.

    POST /invocations as with `mlflow models serve`, every request checked and bounded.

    Needs a policy: the champion of MLflow or a folder. Writes nothing. Ctrl-C or SIGTERM ends it.
    """
    recommender = _recommender(model, root)
    from rl4rec.serve.http import listen, run

    with listen(host, port) as socket:
        typer.echo(f"{model} on http://{host}:{socket.getsockname()[1]}/invocations")
        run(recommender, socket, timeout=timeout)


def _recommender(model: str, root: Path) -> Recommender:
    """The policy of a folder (whose vocabulary is that of the prepared data) or of MLflow."""
    import contextlib
    import tempfile

    params = load_params(root / "params.yaml")
    served = model.startswith(("models:", "runs:"))
    if not served and not Path(model).is_dir():
        policies = sorted(path.parent.name for path in (root / "models").glob("*/config.json"))
        raise UserError(
            f"--model {shown(model)}: no such folder here (the path does not start at --root). "
            f"Policies in {(root / 'models').resolve()}: {listed(policies)}."
        )
    from rl4rec.serve.recommender import load_recommender

    if not served:
        return load_recommender(Path(model), root / "data" / "prepared" / "items.parquet")
    from rl4rec.ops.download import download_policy
    from rl4rec.ops.tracking import use_server

    with contextlib.chdir(root), tempfile.TemporaryDirectory() as scratch:
        use_server(params.tracking, patient=True)
        return load_recommender(*download_policy(model, Path(scratch)))
