"""The data of `make gpu`: the demo's shop as one small file, and made-up sequences of any size.

`python benchmarks/gpu_data.py` prepares the simulated shop of `demo.yaml` and writes benchmarks/gpu_shop.npz, so that
a machine without the project's packages can train on it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from rl4rec.data.dataset import PreparedData, Ragged

SHOP = Path(__file__).with_name("gpu_shop.npz")


def load_shop() -> PreparedData:
    """The demo's prepared data, from the file."""
    with np.load(SHOP) as arrays:
        sequences = Ragged(arrays["values"].astype(np.int64), arrays["offsets"].astype(np.int64))
        stats, items = json.loads(str(arrays["stats"])), [str(item) for item in arrays["item_ids"]]
    return _data(sequences, items, stats)


def made_up(items: int, users: int) -> PreparedData:
    """Sequences as long as Beauty's (5 and more, 8.9 on average) over items of skewed popularity."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 + rng.geometric(0.2, users) - 1, 200)
    values = (items * rng.random(lengths.sum()) ** 2).astype(np.int64)
    sequences = Ragged(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return _data(sequences, [f"i{item}" for item in range(items)], {"data_hash": f"made-up {items}x{users}"})


def _data(sequences: Ragged, item_ids: list[str], stats: dict[str, object]) -> PreparedData:
    data = PreparedData(
        folder=Path("benchmarks"),
        users=[f"u{row}" for row in range(len(sequences))],
        item_ids=item_ids,
        item_counts=np.zeros(len(item_ids), np.int64),
        sequences=sequences,
        stats=stats,
    )
    counts = np.bincount(data.train_sequences().values, minlength=len(item_ids))
    data.item_counts[:] = counts
    return data


def prepare_shop() -> PreparedData:
    """What `make demo` trains on."""
    from rl4rec.data.prepare import prepare
    from rl4rec.params import DataParams

    with tempfile.TemporaryDirectory() as folder:
        return prepare(DataParams(source="simulated"), Path(folder, "prepared"))


def main() -> None:
    data = prepare_shop()
    np.savez_compressed(
        SHOP,
        values=data.sequences.values.astype(np.int32),
        offsets=data.sequences.offsets.astype(np.int32),
        item_ids=np.array(data.item_ids),
        stats=np.array(json.dumps(data.stats)),
    )
    print(f"{SHOP.name}: {data!r}, {SHOP.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
