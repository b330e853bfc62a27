"""examples/first_hour.ipynb: it runs on the simulated shop, and its committed outputs come from such a run."""

from __future__ import annotations

import ast
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

import rl4rec

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/first_hour.ipynb"


def execute(folder: Path) -> NotebookNode:
    """Run all cells in `folder`, in a kernel of this Python, with this checkout's package."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    environment = {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / ".ipython"), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, environment):
        client = NotebookClient(
            notebook,
            timeout=240,
            kernel_name="python3",
            resources={"metadata": {"path": str(folder)}},
            record_timing=False,
        )
        client.execute()
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of whoever ran it last
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: NotebookNode) -> str:
    """What a cell printed or showed, without pictures."""
    return "".join(out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs)


@pytest.mark.slow
def test_it_runs_and_shows_what_its_committed_outputs_show(tmp_path: Path) -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    fresh = execute(tmp_path)
    for cell, before in zip(code_cells(fresh), code_cells(committed), strict=True):
        assert [out.output_type for out in cell.outputs] == [out.output_type for out in before.outputs], cell.source
        # The words; the last digits of the numbers are those of the machine.
        assert re.findall(r"[A-Za-z]{3,}", texts(cell)) == re.findall(r"[A-Za-z]{3,}", texts(before)), cell.source
    assert "Warning" not in "".join(map(texts, code_cells(fresh)))
    assert (tmp_path / "models/grpo/model.safetensors").is_file()


def test_committed_outputs_are_whole_and_name_no_machine() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        out for cell in cells for out in cell.outputs if out.output_type == "error" or out.get("name") == "stderr"
    ]
    assert sum("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs) == 2
    shown = "".join(map(texts, cells))
    assert "NDCG@10" in shown
    assert not re.search(r"/(home|root|tmp|work|Users|usr)/", shown)
    by_hand = re.findall(r"by hand ([\d.]+), by slate_gains ([\d.]+)", shown)
    rows = re.findall(r"^(\w+)(?: +0\.\d{4}){2} +(0\.\d{3})$", shown, re.MULTILINE)
    percentile = {name: float(value) for name, value in rows}
    # What the text below the comparison says of this run.
    assert min(percentile, key=percentile.__getitem__) == "rare" and len(percentile) == 6
    low, high = map(float, re.findall(r"own reward - NDCG as reward: \S+ \[(\S+), (\S+)\]", shown)[0])
    assert low < high < 0
    assert len(by_hand) == 4 and by_hand[0] == ("0.5000", "0.5000") and all(a == b for a, b in by_hand)


def test_it_uses_the_public_interface_only() -> None:
    code = "\n".join(cell.source for cell in code_cells(nbformat.read(NOTEBOOK, as_version=4)))
    tree = ast.parse(code)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"warnings", "matplotlib.pyplot", "numpy", "torch", "rl4rec"}
    assert {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)} == {"pathlib"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rl4rec"
    }
    assert used <= set(rl4rec.__all__)
    assert {"sft", "grpo", "ppo", "crossfit", "evaluate", "paired_bootstrap", "load_recommender"} <= used
    assert not re.search(r"[a-z]\._[a-z]", code)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        nbformat.write(execute(Path(scratch)), NOTEBOOK)
