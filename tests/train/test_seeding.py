from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rl4rec.train.seeding import seed_everything


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_equal_seeds_give_equal_draws_from_every_source() -> None:
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_deterministic_kernels_are_asked_for() -> None:
    seed_everything(0)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="Seed must be between"):
        seed_everything(seed)
