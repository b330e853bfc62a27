"""MLflow as a person sees it: PPO and GRPO of one pipeline in the compare page, their curves, their charts.

The pictures of docs/mlflow.md are taken by the same tests, from the runs of a workspace of one's own:

    RL4REC_WORKSPACE=.demo RL4REC_SCREENSHOTS=docs/images pytest -n 0 tests/browser/test_mlflow.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from playwright.sync_api import Browser, Locator, Page, Route, expect

from rl4rec.settings import load_params
from tests.graph import finished_graph
from tests.servers import mlflow_server

expect.set_options(timeout=60_000)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the graph is made once, by whoever comes first

ALGORITHMS = {"rl-ppo": "ppo", "rl-grpo": "grpo"}
FIGURE = "test/full/ndcg_at_10"
# A flat list (sorted by anything but the time of creation), the best first.
FLAT = "orderByAsc=false&orderByKey=" + quote(f"metrics.`{FIGURE}`")
ONLY_RL = "searchFilter=" + quote("attributes.run_name LIKE 'rl-%'")
# What a plot shows, from the objects behind it: [name, x, y] of each trace.
TRACES = "plot => plot.data.map(trace => [trace.name, Array.from(trace.x), Array.from(trace.y)])"
# The cells of the compare page's table beside a metric's name, left to right.
CELLS = """(link) => {
    const grids = [...document.querySelectorAll('[role=grid]')], names = link.closest('[role=grid]');
    const top = link.closest('div[style]').style.top;
    return [...grids[grids.indexOf(names) + 1].querySelectorAll('div[style]')]
        .filter(cell => cell.style.top === top && cell.style.position === 'absolute' && cell.textContent)
        .sort((a, b) => parseFloat(a.style.left) - parseFloat(b.style.left)).map(cell => cell.textContent);
}"""


@dataclass(frozen=True)
class Shown:
    """A server, the runs that it shows, by name, and the workspace that they are of."""

    address: str
    workspace: Path
    runs: dict[str, Run]

    def url(self, rest: str) -> str:
        return f"{self.address}/#/experiments/{self.runs['rl-ppo'].info.experiment_id}/{rest}"

    @property
    def curve(self) -> str:
        return f"valid/full/ndcg_at_{load_params(self.workspace / 'params.yaml').rl.k}"

    def validations(self, algorithm: str) -> tuple[list[int], list[float]]:
        """Steps and values of the training log."""
        key = self.curve.replace("_at_", "@")
        rows = map(json.loads, (self.workspace / "logs" / f"{algorithm}.jsonl").read_text().splitlines())
        points = [(row["step"], row[key]) for row in rows if key in row]
        return [step for step, _ in points], [value for _, value in points]

    def test_ndcg(self, algorithm: str) -> float:
        metrics = json.loads((self.workspace / "metrics" / f"{algorithm}.json").read_text())["metrics"]
        return float(metrics["test/full/ndcg@10"])


@pytest.fixture(scope="module")
def shown(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """The graph's runs on a server that works on a copy of the database; `browser` comes first, for it may skip."""
    given, folder = os.environ.get("RL4REC_WORKSPACE"), tmp_path_factory.mktemp("shown")
    finished = Path(given).resolve() if given else finished_graph(tmp_path_factory)
    shutil.copy(finished / "mlflow.db", folder / "mlflow.db")
    backend = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(backend)
    found = client.search_runs([client.get_experiment_by_name("rl4rec").experiment_id], order_by=["start_time"])
    with mlflow_server(folder, backend) as address:
        yield Shown(address, finished if given else finished / "project", {run.info.run_name: run for run in found})


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """MLflow's pages for "Model training", its assistant closed; what they ask of other machines is refused."""
    context, others = browser.new_context(viewport={"width": 1280, "height": 900}), list[str]()
    for key, value in (("assistant.fab.autoOpenedOnFirstLoad", "true"), ("workflowType", '"machine_learning"')):
        context.add_init_script(f"localStorage.setItem('mlflow.{key}_v1', '{value}')")
    context.set_default_timeout(60_000)

    def only_this_machine(route: Route) -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            others.append(route.request.url)
            route.abort()

    context.route("**/*", only_this_machine)
    yield context.new_page()
    context.close()
    assert others == []  # it works without the internet


def picture(page: Page, name: str, height: int = 900) -> None:
    """Keep what is seen for the docs, if asked to."""
    folder = os.environ.get("RL4REC_SCREENSHOTS")
    if folder:
        page.set_viewport_size({"width": 1280, "height": height})
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)  # animations
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"mlflow-{name}.png")


def open_comparison(page: Page, shown: Shown) -> None:
    """As a person does: open the pipeline's runs, tick two, press Compare."""
    page.goto(shown.url("runs"))
    pipeline = page.get_by_role("row").filter(has_text=re.compile("pipeline-"))
    pipeline.get_by_role("button").first.click()
    expect(page.get_by_role("link", name="prepare", exact=True)).to_be_visible()
    for name in ALGORITHMS:
        link = page.get_by_role("link", name=name, exact=True)
        row = page.get_by_role("row").filter(has=link)
        row.get_by_role("checkbox", name="toggle row selection").check()
    picture(page, "runs")
    page.get_by_role("button", name="Compare", exact=True).or_(
        page.get_by_role("link", name="Compare", exact=True)
    ).click()
    expect(page.get_by_role("heading", name="Comparing 2 Runs from 1 Experiment")).to_be_visible()


def scroll(table: Locator, top: float) -> None:
    """Scroll, and wait until it is drawn: in MLflow 3.17 the names follow the values one event late, hence two."""
    end = table.evaluate("table => table.scrollHeight - table.clientHeight")
    for position in (min(top, end) - 1, min(top, end)):
        table.evaluate("(table, top) => { table.scrollTop = top; return new Promise(requestAnimationFrame) }", position)
        table.evaluate("() => new Promise(requestAnimationFrame)")


def metric_link(page: Page, name: str) -> Locator:
    """The metric's name in the compare page's table, which only holds the rows in sight."""
    table = page.get_by_role("grid").filter(has=page.get_by_title("Plot chart"))
    expect(table.first).to_be_visible()
    link = table.get_by_role("link", name=name, exact=True)
    values = page.locator("[role=grid] >> nth=-1")
    values.scroll_into_view_if_needed()
    while not link.count():
        at, end = values.evaluate("grid => [grid.scrollTop, grid.scrollHeight - grid.clientHeight - 1]")
        assert at < end, f"no metric {name} in the table"
        scroll(values, at + 90)
    scroll(values, link.evaluate("link => parseFloat(link.closest('div[style]').style.top)") - 120)
    expect(link).to_be_in_viewport()
    return link


def test_two_runs_side_by_side_and_their_learning_curves(page: Page, shown: Shown) -> None:
    open_comparison(page, shown)
    (names,) = [row.inner_text().split() for row in page.get_by_role("row").filter(has_text="Run Name:").all()]
    assert sorted(names[2:]) == sorted(ALGORITHMS)
    page.get_by_text("Visualizations", exact=True).click()
    page.get_by_text("Parameters", exact=True).click()
    cells = metric_link(page, FIGURE).evaluate(CELLS)
    picture(page, "compare")
    expected = [shown.test_ndcg(ALGORITHMS[name]) for name in names[2:]]
    assert [float(cell) for cell in cells] == [round(value, 3) for value in expected]

    metric_link(page, shown.curve).click()
    expect(page.get_by_role("heading", name=shown.curve).first).to_be_visible()
    for name in ALGORITHMS:
        expect(page.get_by_text(f"{name} ({shown.curve})")).to_be_visible()  # the legend
    plot = page.locator(".js-plotly-plot")
    expect(plot).to_have_count(1)
    traces = plot.evaluate(TRACES)
    assert {name for name, _, _ in traces} == set(ALGORITHMS)
    for name, steps, values in traces:
        assert (steps, values) == shown.validations(ALGORITHMS[name])
        assert len(steps) >= 3  # a curve, with the start
    page.get_by_text("Points:").locator("xpath=..").get_by_role("switch").click()
    picture(page, "curves", height=720)


def test_charts_of_both_runs(page: Page, shown: Shown) -> None:
    page.set_viewport_size({"width": 1280, "height": 1200})
    page.goto(shown.url(f"runs?{ONLY_RL}&{FLAT}&compareRunsMode=CHART"))
    for name in ALGORITHMS:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    page.get_by_placeholder("Search metric charts").fill(f"^({FIGURE}|{shown.curve})$")
    plots = page.locator(".js-plotly-plot")
    expect(plots).to_have_count(2)
    bars, curves = (plots.nth(number).evaluate(TRACES) for number in range(2))
    ids = {run.info.run_id: name for name, run in shown.runs.items()}
    drawn = {ids.get(run, run): value for _, values, runs in bars for run, value in zip(runs, values, strict=True)}
    assert drawn == {name: shown.test_ndcg(algorithm) for name, algorithm in ALGORITHMS.items()}
    assert {name for name, _, _ in curves} == set(ALGORITHMS)
    for name, steps, values in curves:
        assert (steps, values) == shown.validations(ALGORITHMS[name])
    picture(page, "charts", height=1200)


def test_the_best_run_comes_first_in_the_list(page: Page, shown: Shown) -> None:
    page.goto(shown.url(f"runs?{ONLY_RL}&{FLAT}"))
    expect(page.get_by_text("2 matching runs")).to_be_visible()
    links = page.get_by_role("link", name=re.compile("^rl-"))
    expect(links).to_have_count(2)
    figures = [shown.test_ndcg(ALGORITHMS[name]) for name in links.all_inner_texts()]
    assert figures == sorted(figures, reverse=True)


def test_the_page_of_a_run(page: Page, shown: Shown) -> None:
    run = shown.runs["rl-grpo"]
    page.goto(shown.url(f"runs/{run.info.run_id}"))
    digest = json.loads((shown.workspace / "data/prepared/stats.json").read_text())["data_hash"]
    expect(page.get_by_text(f"simulated ({digest[:8]}")).to_be_visible()
    expect(page.get_by_text("Reinforcement learning on the metric.")).to_be_visible()
    parent = page.get_by_role("link", name=re.compile("^pipeline-"))
    expect(parent).to_have_attribute("href", re.compile(run.data.tags["mlflow.parentRunId"]))
    expect(page.get_by_role("link", name="policy").first).to_be_visible()
    page.get_by_placeholder("Search metrics").fill(FIGURE)
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=FIGURE, exact=True))
    expect(row).to_contain_text(str(shown.test_ndcg("grpo")))
    parent.click()
    expect(page.get_by_text("One run of the pipeline")).to_be_visible()


def test_the_report_is_read_in_the_artifact_viewer(page: Page, shown: Shown) -> None:
    run = shown.runs["compare"].info.run_id
    page.goto(shown.url(f"runs/{run}/artifacts/report/comparison.html"))
    report = page.frame_locator("iframe")
    expect(report.get_by_role("heading", level=1)).to_contain_text("PPO, GRPO")
    expect(report.get_by_text("GRPO - SFT").first).to_be_visible()
