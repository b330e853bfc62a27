"""What is said of the device, and of a GPU that is there and not used."""

import logging
import warnings
from pathlib import Path

import pytest
import torch

from rl4rec._threads import describe_threads
from rl4rec.model.device import best_device, say_device, to_device, unused_gpu


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file by which an NVIDIA driver shows, on a machine whose GPU torch cannot use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    path = tmp_path / "version"
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.0")
    return path


def test_no_gpu_is_nothing_to_say(driver: Path, tmp_path: Path) -> None:
    assert unused_gpu(tmp_path / "absent") is None


def test_a_gpu_in_use_is_nothing_to_say(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert unused_gpu(driver) is None


def test_a_build_for_cpus_is_the_reason(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs only" in str(unused_gpu(driver))


def test_a_hidden_gpu_is_the_reason(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides it" in str(unused_gpu(driver))


def test_a_driver_too_old_is_the_reason_in_the_words_of_torch(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 470)", stacklevel=2
        )
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    assert "too old (found version 470)" in str(unused_gpu(driver))


def test_the_device_is_said_once_and_the_reason_with_it(
    driver: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rl4rec.model.device.unused_gpu", lambda: unused_gpu(driver))
    say_device.cache_clear()
    with caplog.at_level(logging.INFO, logger="rl4rec"):
        say_device(torch.device("cpu"))
        say_device(torch.device("cpu"))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"{describe_threads(torch.get_num_threads())}, device: CPU"
    assert len(said) == 2 and said[1].startswith("there is an NVIDIA GPU, but it is not used: ")


def test_without_cuda_everything_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")
    tensor = torch.arange(3)
    assert to_device(tensor, "cpu") is tensor
