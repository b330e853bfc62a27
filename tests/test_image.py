"""The image: what can be tested without root and buildah (`sudo make image` builds it and runs the demo in it)."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def docker_ignores(path: str) -> bool:
    """As an engine reads .dockerignore: patterns from the root, a match covers all below it, the last match decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(/.*)?", path):
            ignored = not line.startswith("!")
    return ignored


@pytest.mark.parametrize("file", [".gitignore", ".dvc/.gitignore"])
def test_what_git_ignores_does_not_get_into_the_image(file: str) -> None:
    folder = (ROOT / file).parent.relative_to(ROOT)
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        kept, pattern = line.startswith("!"), line.removeprefix("!").rstrip("/")
        example = pattern.lstrip("/").replace("*", "x")
        places = [folder] if pattern.startswith("/") else [folder, folder / "a/b"]  # without a slash: at any depth
        for place in places:
            assert docker_ignores(str(place / example)) is not kept, f"{file}: {line}"


def test_all_that_git_tracks_gets_into_the_image() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listed.stdout.split("\0")[:-1]
    assert "data/raw.json" in tracked
    assert [path for path in tracked if docker_ignores(path)] == []
    assert docker_ignores(".git/config")


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_dockerfile_is_clean() -> None:
    found = subprocess.run(["hadolint", ROOT / "Dockerfile"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def run_image(tmp_path: Path, *tools: str, user: int = 0, base: str = "") -> subprocess.CompletedProcess[str]:
    """`.ci/image` on a machine that has only these tools, none of which works, as this user."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, text in {"id": f"echo {user}", **dict.fromkeys(tools, "exit 1"), "mktemp": "exit 9"}.items():
        (programs / name).write_text(f"#!{programs}/bash\n{text}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    return subprocess.run(
        [programs / "bash", ROOT / ".ci/image"],
        env={"PATH": str(programs), "BASE_IMAGE": base},
        capture_output=True,
        text=True,
    )


def test_missing_tools_are_named_with_what_installs_them(tmp_path: Path) -> None:
    found = run_image(tmp_path, "git", "python3")
    assert found.returncode == 2
    assert found.stderr == (
        ".ci/image: buildah iproute2 debootstrap missing here: "
        "sudo apt-get install --no-install-recommends buildah iproute2 debootstrap\n"
    )


def test_it_must_be_root(tmp_path: Path) -> None:
    found = run_image(tmp_path, "buildah", "debootstrap", "git", "ip", "python3", user=1000)
    assert (found.returncode, found.stderr) == (
        2,
        ".ci/image: must be root, to mount file systems: sudo make image\n",
    )


def test_a_given_base_needs_no_debootstrap(tmp_path: Path) -> None:
    found = run_image(tmp_path, "buildah", "git", "ip", "python3", base="docker.io/library/ubuntu:24.04")
    assert (found.returncode, found.stderr) == (9, "")  # past the checks: it asks for a folder to work in


def test_settings_of_pip_reach_the_build(tmp_path: Path) -> None:
    for name in ("wheels", "mirror/simple", "out/mnt"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "company.pem").write_text("a certificate\n", encoding="utf-8")
    (tmp_path / "pip.conf").write_text(
        "[global]\n"
        "index-url = https://example.com/simple\n"
        f"cert = {tmp_path}/company.pem\n"
        f"cache-dir = {tmp_path}/cache\n"
        "timeout = 7\n"
        "[install]\n"
        f"find-links = {tmp_path}/wheels https://example.com/wheels\n"
        "extra-index-url = https://overruled.example.com\n",
        encoding="utf-8",
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_DEFAULT_TIMEOUT": "9"}
    environment |= {"PIP_EXTRA_INDEX_URL": f"file://{tmp_path}/mirror/simple/", "HOME": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, ROOT / ".ci/pip_settings.py", tmp_path / "out"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    written = configparser.RawConfigParser()
    written.read(tmp_path / "out/pip.conf", encoding="utf-8")
    settings = dict(written["global"])
    expected = {
        "cert": "/run/secrets/ca",
        "index-url": "https://example.com/simple",
        "extra-index-url": "file:///mnt/0/simple",
        "find-links": "file:///mnt/1\nhttps://example.com/wheels",
        "timeout": "9",
    }
    assert {name: settings.get(name) for name in (*expected, "cache-dir")} == expected | {"cache-dir": None}
    assert (tmp_path / "out/ca").read_text(encoding="utf-8") == "a certificate\n"
    assert found.stdout == f"--volume={tmp_path}/mirror:/mnt/0:ro\n--volume={tmp_path}/wheels:/mnt/1:ro\n"
    assert [path.name for path in sorted((tmp_path / "out/mnt").iterdir())] == ["0", "1"]
