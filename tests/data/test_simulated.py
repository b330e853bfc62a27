import numpy as np
import polars as pl
import pytest

from rl4rec.data.dataset import PreparedData, Ragged, Split
from rl4rec.data.k_core import k_core
from rl4rec.data.prepare import prepare
from rl4rec.data.sources.simulated import Shop, number_of, simulate
from rl4rec.params import DataParams, SimulatedShop


def hand_made_shop() -> Shop:
    """Six items, one even taste; items 1..4 follow item 0, the others lead back to 0, 1, 2, 3 in turn."""
    successors = np.array([[1, 2, 3, 4], *[[0, *[i for i in (1, 2, 3, 4) if i != item][:3]] for item in range(1, 6)]])
    opened, sequences = np.array([0, 0, 0, 0, 0, 20]), Ragged.from_rows([[5, 0, 2]])
    return Shop(np.full((1, 6), 1 / 6), np.ones((1, 1)), successors, opened, sequences, np.array([30, 31, 32]))


def test_next_item_by_hand():
    seen = np.zeros((1, 6), dtype=bool)
    seen[0, 0] = True
    p = hand_made_shop().next_item(np.array([0]), seen, np.array([0]), np.array([30]))
    # .4 / 6 from the taste, .6 x (.55 .25 .12 .08) from item 0, nothing for item 0 itself; then rescaled by 1 - .4 / 6.
    weights = np.array([0, 0.4 / 6 + 0.33, 0.4 / 6 + 0.15, 0.4 / 6 + 0.072, 0.4 / 6 + 0.048, 0.4 / 6])
    np.testing.assert_allclose(p[0], weights / (1 - 0.4 / 6), rtol=1e-12)


def test_first_item_comes_from_the_tastes_alone():
    p = hand_made_shop().next_item(np.array([0]), np.zeros((1, 6), dtype=bool), np.array([-1]), np.array([20]))
    np.testing.assert_allclose(p[0], np.full(6, 1 / 6))
    # item 5 comes into the shop at time 20
    p = hand_made_shop().next_item(np.array([0]), np.zeros((1, 6), dtype=bool), np.array([-1]), np.array([19]))
    np.testing.assert_allclose(p[0], [*np.full(5, 1 / 5), 0])


def test_oracle_is_conditioned_on_the_full_history_and_on_the_items_that_were_kept():
    # Step 2 of [5, 0, 2]: items 5 and 0 are taken, 0 was last. Items 4 and 0 were filtered away; 1, 2, 3, 5 kept.
    p = hand_made_shop().oracle(np.array([0, 0]), np.array([2, -1]), np.array([3, 2, 1, 5]))
    weights = np.array([0.4 / 6 + 0.072, 0.4 / 6 + 0.15, 0.4 / 6 + 0.33, 0])
    np.testing.assert_allclose(p[0], weights / weights.sum(), rtol=1e-6)
    assert p[1].tolist() == [0, 0, 0, 0]


def test_equal_params_equal_shop_and_another_seed_another():
    params = SimulatedShop(users=50, items=40)
    first, second = simulate(params), simulate(params)
    assert first.events().equals(second.events())
    assert not first.events().equals(simulate(params.model_copy(update={"seed": 8})).events())


def test_shape_of_the_shop():
    shop = simulate(SimulatedShop())
    lengths = shop.sequences.lengths
    assert len(lengths) == 1500
    assert lengths.min() >= 5
    assert lengths.mean() == pytest.approx(9.0, abs=0.4)
    assert all(len(set(row)) == len(row) for row in (shop.sequences[user].tolist() for user in range(1500)))
    assert all(len({item, *row}) == 5 for item, row in enumerate(shop.successors.tolist()))
    counts = np.sort(np.bincount(shop.sequences.values, minlength=200))
    assert counts[-20:].sum() > 3 * counts[:100].sum() / 5, "the top tenth outsells the lower half per item"
    events = shop.events()
    assert number_of(events["user"]).tolist() == np.repeat(np.arange(1500), lengths).tolist()
    assert number_of(events["item"]).tolist() == shop.sequences.values.tolist()
    assert events.filter(pl.col("user") == "u00000003")["step"].to_list() == list(range(lengths[3]))
    assert (events["time"].diff().filter(events["step"] > 0) > 0).all(), "one item at a time"


def test_baskets_and_new_items_leave_what_users_take_as_it_is_where_they_can():
    plain = simulate(SimulatedShop())
    baskets = simulate(SimulatedShop(basket_size=4))
    assert baskets.sequences.values.tolist() == plain.sequences.values.tolist()
    later = baskets.events().filter(pl.col("step") > 0)["time"]
    together = baskets.events()["time"].diff().filter(baskets.events()["step"] > 0) == 0
    assert together.mean() == pytest.approx(3 / 4, abs=0.01), "three of four items are not the first of a basket"
    assert later.min() > 1_672_531_200
    new = simulate(SimulatedShop(new_items=0.3))
    assert (new.added > 1_672_531_200).sum() == 60
    assert (new.times >= new.added[new.sequences.values]).all(), "nobody takes what is not there yet"


def test_the_default_shop_survives_the_five_core():
    events = simulate(SimulatedShop()).events()
    mask, _ = k_core(number_of(events["user"]).astype(np.uint32), number_of(events["item"]).astype(np.uint32), 5)
    assert mask.mean() > 0.99


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedData:
    return prepare(DataParams(source="simulated"), tmp_path_factory.mktemp("shop") / "prepared")


@pytest.mark.parametrize("fold", ["valid", "test"])
def test_oracle_is_calibrated(prepared, fold):
    """Drawn from p, the target's own probability is the sum of squares on average."""
    oracle, split = prepared.oracle(fold), prepared.split(fold)
    rows = np.arange(len(split.targets))
    np.testing.assert_allclose(oracle.sum(axis=1), 1, atol=1e-5)
    assert all(oracle[row, split.history[row]].max() == 0 for row in rows)
    gap = oracle[rows, split.targets] - (oracle**2).sum(axis=1)
    assert oracle[rows, split.targets].min() > 0
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(rows))
    # The mean item number, too: a draw that favours low or high numbers shows there first.
    numbers = np.arange(prepared.num_items)
    mean = oracle @ numbers
    variance = oracle @ numbers**2 - mean**2
    assert abs((split.targets - mean).sum()) < 4 * np.sqrt(variance.sum())


def ndcg_at_10(scores: np.ndarray, split: Split) -> float:
    total = 0.0
    for row, target in enumerate(split.targets):
        seen = set(split.history[row].tolist())
        rank = sum(
            1 for item in np.argsort(-scores[row]) if item not in seen and scores[row][item] > scores[row][target]
        )
        total += 1 / np.log2(rank + 2) if rank < 10 else 0.0
    return total / len(split.targets)


def test_histories_tell_what_comes_next(prepared):
    """Counting what followed the last item beats popularity by far, and the oracle beats both."""
    split, train = prepared.split("test"), prepared.train_sequences()
    popularity = prepared.item_counts / prepared.item_counts.sum()
    follows = np.zeros((prepared.num_items, prepared.num_items))
    for row in range(len(train)):
        np.add.at(follows, (train[row][:-1], train[row][1:]), 1)
    last = np.array([split.history[row][-1] for row in range(len(split.targets))])
    users = Split(split.user_rows[:400], split.history, split.targets[:400])
    by_popularity = ndcg_at_10(np.tile(popularity, (400, 1)), users)
    by_last_item = ndcg_at_10(follows[last[:400]] + popularity, users)
    by_oracle = ndcg_at_10(prepared.oracle("test")[:400], users)
    assert 0.02 < by_popularity < 0.15
    assert by_last_item > 3 * by_popularity
    assert by_oracle > by_last_item


def test_oracle_follows_items_and_users_that_the_core_leaves(tmp_path):
    params = DataParams(source="simulated", k_core=5, simulated=SimulatedShop(users=80, items=150, popularity_skew=1.5))
    data = prepare(params, tmp_path / "prepared")
    assert data.num_items < 150 and data.stats["rows"]["dropped_k_core"] > 0
    split, oracle = data.split("test"), data.oracle("test")
    assert oracle.shape == (len(split.targets), data.num_items)
    np.testing.assert_allclose(oracle.sum(axis=1), 1, atol=1e-5)
    assert oracle[np.arange(len(split.targets)), split.targets].min() > 0
    # Worked out anew for one user from the full, unfiltered shop.
    shop = simulate(params.simulated)
    user = int(data.users[0][1:])
    full = shop.sequences[user].tolist()
    step = full.index(int(data.item_ids[split.targets[0]][1:]))
    p = 0.4 * shop.mix[user] @ shop.taste
    for follower, weight in zip(shop.successors[full[step - 1]], (0.55, 0.25, 0.12, 0.08), strict=True):
        p[follower] += 0.6 * weight
    p[full[:step]] = 0
    kept = p[[int(item[1:]) for item in data.item_ids]]
    np.testing.assert_allclose(oracle[0], kept / kept.sum(), rtol=1e-5)
