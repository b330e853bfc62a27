"""RecTools' SASRec on the training parts of a data set, run by `benchmarks/accuracy.py` in an environment of its own.

Usage: rectools_sasrec.py DATA.npz FOLDER MINUTES SETTINGS.json

After every epoch the states of all users after their training parts, and the item embeddings, go to
FOLDER/epoch-N.npz with the training seconds so far, the time for that left out. The scores are their product, which
our evaluator ranks: both models are judged by the same code.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

NEVER = -1e4  # score of an item that no user has in training


def as_dataset(values: np.ndarray, offsets: np.ndarray) -> Dataset:
    lengths = np.diff(offsets)
    order = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(lengths)), lengths),
            Columns.Item: values,
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2014-01-01") + pd.to_timedelta(order, unit="D"),
        }
    )
    return Dataset.construct(frame)


class Dump(Callback):
    """Writes states and item embeddings after every epoch; stops when the time is up."""

    def __init__(self, arrays: dict[str, np.ndarray], folder: Path, seconds: float) -> None:
        self.arrays, self.folder, self.limit = arrays, folder, seconds
        self.spent = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: torch.nn.Module) -> None:
        self.since = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, module: torch.nn.Module) -> None:
        self.spent += time.perf_counter() - self.since
        module.eval()
        with torch.no_grad():
            states, items = self.vectors(module)
        module.train()
        partial = self.folder / "partial.npz"
        np.savez(partial, states=states, items=items, seconds=self.spent)
        partial.rename(self.folder / f"epoch-{trainer.current_epoch + 1}.npz")
        if self.spent > self.limit:
            trainer.should_stop = True

    def vectors(self, module: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
        backbone, known = module.torch_model, module.data_preparator.item_id_map
        length = module.data_preparator.session_max_len
        own = backbone.item_model.get_all_embeddings()  # row 0 is padding
        items = np.zeros((int(self.arrays["items"]), own.shape[1] + 1), np.float32)
        items[:, -1] = NEVER
        there = np.array([item for item in known.external_ids if not isinstance(item, str)], dtype=np.int64)
        rows = known.convert_to_internal(there)
        items[there, :-1], items[there, -1] = own[rows].numpy(), 0.0
        inner = np.zeros(len(items), np.int64)
        inner[there] = rows
        values, offsets = self.arrays["values"], self.arrays["offsets"]
        states = []
        for first in range(0, len(offsets) - 1, 512):
            users = range(first, min(first + 512, len(offsets) - 1))
            x = np.zeros((len(users), length), np.int64)
            for row, user in enumerate(users):
                history = inner[values[offsets[user] : offsets[user + 1]]][-length:]
                x[row, length - len(history) :] = history
            states.append(backbone.encode_sessions({"x": torch.from_numpy(x)}, own)[:, -1].numpy())
        whole = np.concatenate(states)
        return np.concatenate([whole, np.ones((len(whole), 1), np.float32)], 1), items


def main() -> None:
    data, folder, minutes, settings = sys.argv[1:]
    arrays = dict(np.load(data))
    chosen = json.loads(settings)
    seed_everything(0)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=chosen["epochs"], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[Dump(arrays, Path(folder), 60 * float(minutes))],
        )  # fmt: skip

    model = SASRecModel(**chosen, get_trainer_func=trainer, verbose=0)
    model.fit(as_dataset(arrays["values"], arrays["offsets"]))


if __name__ == "__main__":
    main()
