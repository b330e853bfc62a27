"""compose.yaml and the Dockerfile: what can be seen without an engine."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]


def services() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"])


def test_servers_are_open_to_this_machine_only() -> None:
    ports = [port for service in services().values() for port in service.get("ports", [])]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_no_password_is_written_down() -> None:
    for name in ("compose.yaml", "compose.gpu.yaml", "Dockerfile"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if "PASSWORD" in line and not line.lstrip().startswith("#"):
                assert "${POSTGRES_PASSWORD:?" in line, line


def test_everything_waits_for_what_it_needs_to_be_healthy() -> None:
    found = services()
    for service in found.values():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert "healthcheck" in found[needed]
    assert found["trainer"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "mlflow:5000" in found["mlflow"]["command"]  # MLflow refuses hosts that it was not told


def test_images_are_pinned_and_run_as_a_numeric_user() -> None:
    assert services()["postgres"]["image"].rpartition(":")[2][0].isdigit()
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "\nUSER 1000:1000\n" in dockerfile
    assert "'.[server,train]'" in dockerfile
