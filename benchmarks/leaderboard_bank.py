"""Files of the public leaderboard's setting: text in chunks, checkpoints, and a bank of models.

As Hugging Face's hub has them (EleutherAI: ``bergson-wikitext-512-chunks``, a data set,
``bergson-wikitext-gpt2-leaderboard``, a model, and ``bergson-wikitext-gpt2-leaderboard-bank``):

- text: ``data/train-*.parquet`` and ``data/test-*.parquet`` (or without the folder), one row a chunk,
  with its tokens in a column ``input_ids``;
- model: ``exported/checkpoint-STEP/``, each a folder of transformers;
- bank: ``subsets.json``, for each model the numbers of the chunks that it was not trained on;
  ``retrained/subset_N/``, the models as folders of transformers; and, where its makers have asked them
  already, ``query_loss_cache/*.pt`` with a tensor ``per_subset`` (models, queries) of mean losses.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trakstore.progress import ProgressLine

F64 = NDArray[np.float64]
BATCH = 8


def read_chunks(folder: Path, split: str) -> NDArray[np.int64]:
    """Read the tokens of a split (chunks, length)."""
    from pyarrow import parquet

    files = sorted(folder.glob(f"data/{split}-*.parquet")) or sorted(
        folder.glob(f"{split}*.parquet")
    )
    if not files:
        raise FileNotFoundError(
            f"{folder} has no data/{split}-*.parquet; download the data set there"
        )
    columns = [parquet.read_table(file, columns=["input_ids"])["input_ids"] for file in files]
    chunks = [tokens for column in columns for tokens in column.to_pylist()]
    if len({len(one) for one in chunks}) != 1:
        raise ValueError(f"{folder}: chunks of {split} differ in length")
    return np.array(chunks, dtype=np.int64)


def checkpoints(folder: Path, steps: list[int] | None = None) -> dict[int | str, Path]:
    """Find the folders of checkpoints by step; all, or some."""
    found = {int(one.name.rpartition("-")[2]): one for one in folder.glob("exported/checkpoint-*")}
    asked = sorted(found) if steps is None else steps
    if missing := [step for step in asked if step not in found] or ([] if found else ["any"]):
        raise FileNotFoundError(
            f"{folder}/exported has no checkpoint {missing[0]}; it has {sorted(found)}"
        )
    return {step: found[step] for step in asked}


def language_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@dataclass(frozen=True)
class Bank:
    """Models that were trained without some chunks, and their losses of the queries.

    Attributes
    ----------
    subsets : ndarray of bool, shape (models, train)
        Chunks that each model was trained on.
    losses : ndarray, shape (models, queries)
        Mean loss of a query's tokens.
    """

    subsets: NDArray[np.bool_]
    losses: F64

    @classmethod
    def read(cls, folder: Path, rows: int, queries: NDArray[np.int64], kept: Path) -> Bank:
        """Read a bank; models that nobody has asked yet are asked now, and losses kept."""
        left_out = json.loads((folder / "subsets.json").read_text())
        subsets = np.ones((len(left_out), rows), dtype=bool)
        for mask, out in zip(subsets, left_out, strict=True):
            if len(out) and not 0 <= min(out) <= max(out) < rows:
                raise ValueError(f"{folder}: subsets.json names chunk {max(out)} of {rows}")
            mask[out] = False
        shape = len(left_out), len(queries)
        losses = _known(folder, shape)
        return cls(subsets, _asked(folder, shape, queries, kept) if losses is None else losses)


def _known(folder: Path, shape: tuple[int, int]) -> F64 | None:
    """Return losses that the bank's makers have kept, if they are of as many models and queries."""
    for file in sorted(folder.glob("query_loss_cache/*.pt")):
        losses = torch.load(file, weights_only=True, map_location="cpu").get("per_subset")
        if losses is not None and tuple(losses.shape) == shape:
            return np.asarray(losses.double().numpy())
    return None


def _asked(folder: Path, shape: tuple[int, int], queries: NDArray[np.int64], kept: Path) -> F64:
    """Ask one model after the other; a run that is stopped goes on where it was."""
    losses = np.load(kept) if kept.exists() else np.full(shape, np.nan)
    line = ProgressLine("asking", shape[0], unit="models")
    with line:
        for number in range(shape[0]):
            if np.isnan(losses[number]).any():
                losses[number] = mean_losses(folder / "retrained" / f"subset_{number}", queries)
                np.save(kept, losses)
            line.reach(number + 1)
    return np.asarray(losses, dtype=np.float64)


def mean_losses(folder: Path, queries: NDArray[np.int64]) -> F64:
    """Compute the mean loss of each query's tokens, from the second on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, found = language_model(folder).to(device), []
    with torch.no_grad():
        for start in range(0, len(queries), BATCH):
            ids = torch.from_numpy(queries[start : start + BATCH]).to(device)
            answer: Any = model(input_ids=ids)
            logits = answer.logits[:, :-1].float().transpose(1, 2)
            each = torch.nn.functional.cross_entropy(logits, ids[:, 1:], reduction="none")
            found.append(each.double().mean(1).cpu())
    return torch.cat(found).numpy()
