"""The leaderboard's runner on a made-up bank of its layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_benchmarks import ENVIRONMENT, FOLDER

sys.path.append(str(FOLDER))
pa = pytest.importorskip("pyarrow")
tf = pytest.importorskip("transformers")
from leaderboard_bank import Bank, checkpoints, read_chunks  # noqa: E402
from pyarrow import parquet  # noqa: E402

TRAIN, QUERIES, LENGTH, MODELS = 20, 4, 8, 6


def trained(ids: Any, steps: int, kept: dict[int, Path] | None = None) -> Any:
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 12, "n_positions": LENGTH}
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        if kept and step in kept:
            model.save_pretrained(kept[step])
    return model


def written(folder: Path) -> tuple[Any, Any, list[list[int]]]:
    """Write text, checkpoints and bank as the hub has them."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 12, (TRAIN + QUERIES, 1), generator=generator)
    ids = (first + torch.arange(LENGTH) * (1 + first % 3)) % 12
    (folder / "text/data").mkdir(parents=True)
    for split, rows in (("train", ids[:TRAIN]), ("test", ids[TRAIN:])):
        columns = {"input_ids": rows.tolist(), "length": [LENGTH] * len(rows)}
        file = folder / f"text/data/{split}-00000-of-00001.parquet"
        parquet.write_table(pa.table(columns), file)
    exported = {step: folder / f"model/exported/checkpoint-{step}" for step in (3, 6)}
    trained(ids[:TRAIN], 6, exported)
    rng = np.random.default_rng(0)
    left_out = [rng.permutation(TRAIN)[:5].tolist() for _ in range(MODELS)]
    for number, out in enumerate(left_out):
        rows = ids[np.setdiff1d(np.arange(TRAIN), out)]
        trained(rows, 6).save_pretrained(folder / f"bank/retrained/subset_{number}")
    (folder / "bank/subsets.json").write_text(json.dumps(left_out))
    return ids[:TRAIN].numpy(), ids[TRAIN:].numpy(), left_out


@pytest.mark.slow
def test_a_bank_of_the_layout_is_read_and_scored(tmp_path: Path) -> None:
    train, queries, left_out = written(tmp_path)
    np.testing.assert_array_equal(read_chunks(tmp_path / "text", "train"), train)
    assert list(checkpoints(tmp_path / "model")) == [3, 6]
    places = [str(tmp_path / name) for name in ("text", "model", "bank", "out")]
    command = [str(FOLDER / "leaderboard.py"), *places[:3], "--out", places[3], "--dim", "64"]
    done = subprocess.run(
        [sys.executable, *command, "--checkpoints", "3", "6", "--device", "cpu"],
        capture_output=True, text=True, timeout=240, check=True, env=ENVIRONMENT,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 models, 4 queries, 2 checkpoints, 64 numbers a row, 8 draws")
    found = json.loads((tmp_path / "out/leaderboard.json").read_text())
    assert len(found) == 6 and all(-1 <= one <= 1 for line in found.values() for one in line)
    # The losses are those of transformers' own models, and chunks that are left out have no part.
    bank = Bank.read(tmp_path / "bank", TRAIN, queries, tmp_path / "out/losses-4.npy")
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "bank/retrained/subset_2").eval()
    ids = torch.from_numpy(queries[1:2])
    with torch.no_grad():
        wanted = float(model(input_ids=ids, labels=ids).loss)
    assert bank.losses[2, 1] == pytest.approx(wanted, rel=1e-5)
    assert [np.flatnonzero(~mask).tolist() for mask in bank.subsets] == [
        sorted(one) for one in left_out
    ]
    # What its makers have kept is taken as it is, if it is of these queries.
    (tmp_path / "bank/query_loss_cache").mkdir()
    for name, shape in (("losses_a", (MODELS, 9)), ("losses_b", (MODELS, QUERIES))):
        kept = {"baseline": 0.0, "per_subset": torch.full(shape, 2.5)}
        torch.save(kept, tmp_path / f"bank/query_loss_cache/{name}.pt")
    again = Bank.read(tmp_path / "bank", TRAIN, queries, tmp_path / "none.npy")
    assert (again.losses == 2.5).all() and again.losses.shape == (MODELS, QUERIES)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download the data set"):
        read_chunks(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="no checkpoint any"):
        checkpoints(tmp_path)
    (tmp_path / "exported/checkpoint-5").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 72; it has \[5\]"):
        checkpoints(tmp_path, [72])
    (tmp_path / "subsets.json").write_text("[[0, 20]]")
    with pytest.raises(ValueError, match="chunk 20 of 20"):
        Bank.read(tmp_path, 20, np.zeros((1, 3), dtype=np.int64), tmp_path / "kept.npy")
