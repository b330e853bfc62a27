"""Cross-fitted item embeddings: what the items looked like to a policy that never saw a prompt's target.

A policy remembers what SFT trained it on: on Amazon Beauty it ranks its training targets five times better than new
ones (NDCG@10 .36 against .07). A reward on those targets teaches it to trust its memory. RL therefore reads and
scores a prompt with item embeddings that were fitted, under the very same body, to the interactions *before* the
prompt's target: cross-fitting (Chernozhukov et al. 2018, section 3) of the part of the policy that memorises. The
body is shared and is what RL trains; afterwards the policy takes its own embeddings again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rl4rec.errors import UserError

FILE = "crossfit.safetensors"


class CrossfitEmbeddings(NamedTuple):
    """Item embeddings of n tables; table t has not seen anyone's last t + 1 items of the feedback."""

    inputs: Tensor  # (n, I, d) as the policy reads items
    outputs: Tensor  # (n, I, d) as it scores them
    item_offset: int

    @property
    def tables(self) -> int:
        """How many, n."""
        return len(self.inputs)

    def to(self, device: torch.device) -> Self:
        """A copy on a device."""
        return self._replace(inputs=self.inputs.to(device), outputs=self.outputs.to(device))

    def digest(self) -> str:
        """Of the numbers: equal tables, equal digest."""
        found = hashlib.sha256()
        for tensor in (self.inputs, self.outputs):
            found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write them into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        offset = torch.tensor(self.item_offset)
        tensors = {"inputs": self.inputs.contiguous(), "outputs": self.outputs.contiguous(), "item_offset": offset}
        save_file(tensors, folder / FILE)


def load_crossfit(folder: Path, *, tables: int) -> CrossfitEmbeddings | None:
    """Read what stage `crossfit` wrote; None for 0 tables.

    Raises:
        UserError: the file is missing or holds another number of tables.
    """
    if tables == 0:
        return None
    try:
        tensors = load_file(folder / FILE)
    except FileNotFoundError:
        raise UserError(f"{folder / FILE}: no such file. Run `dvc repro crossfit` first.") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / FILE}: cannot be read ({error}). Run `dvc repro crossfit`.") from None
    try:
        found = CrossfitEmbeddings(tensors["inputs"], tensors["outputs"], int(tensors["item_offset"]))
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / FILE}: not cross-fitted embeddings ({error}). Run `dvc repro crossfit`.") from None
    if found.inputs.dim() != 3 or found.outputs.dim() != 3 or found.inputs.shape[:2] != found.outputs.shape[:2]:
        shapes = f"{tuple(found.inputs.shape)} and {tuple(found.outputs.shape)}"
        raise UserError(f"{folder / FILE}: tables of shapes {shapes} do not match. Run `dvc repro crossfit`.")
    if found.tables != tables:
        raise UserError(
            f"{folder / FILE}: holds {found.tables} tables, but rl.crossfit.split_points is {tables}. "
            "Run `dvc repro crossfit`."
        )
    return found
