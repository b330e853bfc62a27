"""Threads of a process: the quota of its control groups, and that it holds before anything starts threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl4rec import _threads
from rl4rec._threads import choose_threads, cpu_quota, describe_threads, given_threads, usable_processors

ROOT = Path(__file__).parents[1]
VARIABLES = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_WAIT_POLICY")


def system(folder: Path, groups: str, **files: str) -> Path:
    """A root with a process's control groups, and files below sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


V1 = "9:pids:/ci\n3:cpu,cpuacct:/ci/job\n0::/\n"


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/\n", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/ci/job\n", {"ci/job/cpu.max": "max 100000", "ci/cpu.max": "150000 50000"}, 3.0),  # of the group above
        ("0::/ci/job\n", {"ci/job/cpu.max": "100000 100000", "ci/cpu.max": "400000 100000"}, 1.0),
        ("0::/../elsewhere\n", {"cpu.max": "200000 100000"}, 2.0),  # a container that sees its own group as the root
        ("0::/docker/1f\n", {"cpu.max": "200000 100000"}, 2.0),
        (V1, {"cpu,cpuacct/ci/job/cpu.cfs_quota_us": "-1", "cpu,cpuacct/ci/job/cpu.cfs_period_us": "100000"}, None),
        (V1, {"cpu,cpuacct/ci/job/cpu.cfs_quota_us": "50000", "cpu,cpuacct/ci/job/cpu.cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3.0),
        ("0::/job\n", {"unified/job/cpu.max": "200000 100000"}, 2.0),  # beside version 1
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("nonsense\n", {"cpu.max": "100000 0"}, None),
    ],
)
def test_the_quota_is_the_least_of_all_levels(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(system(tmp_path, groups, **files)) == quota


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "cores", "processors"), [("150000", 8, 1), ("20000", 8, 1), ("390000", 2, 2)])
def test_whole_processors_by_quota_and_affinity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int, processors: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert usable_processors(system(tmp_path, "0::/\n", **{"cpu.max": f"{quota} 100000"})) == processors
    assert usable_processors(tmp_path / "absent") == cores


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set, before and after."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set is taken back
    monkeypatch.setattr(_threads, "_ours", set())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("environment")
def test_a_quota_sets_the_threads_and_none_leaves_them_to_the_libraries(tmp_path: Path) -> None:
    choose_threads(tmp_path / "absent")
    assert [os.environ[name] for name in VARIABLES] == ["", "", "passive"]
    choose_threads(system(tmp_path, "0::/\n", **{"cpu.max": "300000 100000"}))
    assert [os.environ[name] for name in VARIABLES] == ["3", "3", "passive"]
    assert given_threads() is None


@pytest.mark.usefixtures("environment")
def test_what_the_user_has_set_is_kept_and_said(tmp_path: Path) -> None:
    os.environ |= {"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "active"}
    choose_threads(system(tmp_path, "0::/\n", **{"cpu.max": "300000 100000"}))
    assert [os.environ[name] for name in VARIABLES] == ["5", "3", "active"]
    assert given_threads() == "5"
    assert describe_threads(5) == "5 threads (OMP_NUM_THREADS)"


@pytest.mark.usefixtures("environment")
def test_the_log_says_what_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threads, "cpu_quota", lambda: 2.5)
    assert describe_threads(2) == "2 threads (CPU quota 2.5)"
    monkeypatch.setattr(_threads, "cpu_quota", lambda: None)
    assert describe_threads(1) == "1 thread"


def python(*arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT)} | more,
        capture_output=True,
        text=True,
        check=False,
    )


def test_torch_and_polars_take_the_number(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rl4rec._threads import choose_threads\n"
        "choose_threads(Path(sys.argv[1])); import torch, polars\n"
        "print(torch.get_num_threads(), polars.thread_pool_size())"
    )
    found = python("-c", code, str(system(tmp_path, "0::/\n", **{"cpu.max": "100000 100000"})))
    assert found.stdout == "1 1\n"


@pytest.mark.slow
def test_threads_of_a_stage_wait_passively(tmp_path: Path) -> None:
    """OpenMP says what it was loaded with: a variable that comes later has no effect."""
    found = python(str(ROOT / "pipelines/sft.py"), cwd=tmp_path, OMP_DISPLAY_ENV="verbose")
    assert found.returncode == 2 and "params.yaml" in found.stderr
    assert "GOMP_SPINCOUNT = '0'" in found.stderr


@pytest.mark.parametrize("script", sorted(ROOT.glob("pipelines/*.py")), ids=lambda path: path.stem)
def test_every_script_chooses_its_threads_first(script: Path) -> None:
    if "__main__" not in script.read_text():
        return  # pipelines/reward.py: a module
    first = next(line for line in script.read_text().splitlines() if "rl4rec" in line and "import" in line)
    assert first.startswith("import rl4rec._script ")
