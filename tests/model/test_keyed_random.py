"""Keyed random numbers: a function of key and place, distributed and independent as they should be."""

import math

import pytest
import torch

from rl4rec.model.keyed_random import _mix_in_place, combine, exponential

KEYS = combine(torch.arange(2000))  # of neighbouring numbers, as seeds, slates and slots are


def test_the_wrapping_hash_is_that_of_unbounded_integers() -> None:
    numbers = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, *torch.randint(0, 2**32, (100,)).tolist()]
    expected = []
    for number in numbers:
        x = (number ^ (number >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        expected.append(x ^ (x >> 16))
    bits = torch.tensor(numbers).to(torch.int32)
    _mix_in_place(bits)
    assert (bits.long() % 2**32).tolist() == expected


def test_exponentials_are_a_function_of_key_and_place() -> None:
    whole = exponential(KEYS[:6].view(2, 3), 50)
    assert whole.shape == (2, 3, 50)
    assert torch.equal(exponential(KEYS[4:5], 20), whole[1, 1:2, :20])


def test_exponentials_are_distributed_as_such() -> None:
    ordered = exponential(KEYS, 1000).double().flatten().sort().values
    assert ordered[0] > 0 and ordered[-1] < 17
    distance = (-torch.expm1(-ordered) - torch.arange(1, len(ordered) + 1) / len(ordered)).abs().max()
    assert distance < 1.95 / math.sqrt(len(ordered))  # Kolmogorov and Smirnov, at one in a thousand


def test_exponentials_of_other_keys_and_places_are_uncorrelated() -> None:
    ranks = exponential(KEYS, 1000).double().neg().exp()  # uniform
    centred = (ranks - 0.5) * math.sqrt(12)
    for matrix, count in ((centred @ centred.T / 1000, 1000), (centred.T @ centred / 2000, 2000)):
        off = matrix.fill_diagonal_(0.0) * math.sqrt(count)  # standard normal each
        pairs = len(off) * (len(off) - 1)
        assert off.abs().max() < 6.5
        assert float(off.square().sum() / pairs) == pytest.approx(1.0, abs=0.02)


def test_keys_depend_on_every_part_and_their_order() -> None:
    one, two = torch.tensor([1]), torch.tensor([2])
    assert combine(one, two) != combine(two, one)
    grid = combine(torch.arange(300).view(-1, 1), torch.arange(300))
    assert len(grid.unique()) > 300**2 - 5  # 0.9 pairs of 32 bits expected to coincide
    assert grid.min() >= 0 and grid.max() < 2**32
