"""Features that a Trainer writes as it goes: its collator, precision, rates, and early refusals."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.features import Job, featurize_job
from trakstore.features.callback import trainer_callback

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

IDENTITY = ts.ProjectionSpec("identity")


def model() -> Any:
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 30}
    config |= {"num_attention_heads": 2, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))


def ragged() -> list[dict[str, Any]]:
    """Rows of several lengths, with a column that no model takes: the Trainer drops that."""
    generator = torch.Generator().manual_seed(1)
    sizes = [5, 7, 9, 6, 8, 4, 9, 5]
    return [
        {"input_ids": torch.randint(2, 30, (n,), generator=generator).tolist(), "source": n}
        for n in sizes
    ]


def padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    length = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[i, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def trainer(out: Path, callback: Any, **more: Any) -> Any:
    options: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = transformers.TrainingArguments(str(out), **options | more)
    data = {"train_dataset": ragged(), "data_collator": padded}
    return transformers.Trainer(model(), arguments, callbacks=[callback], **data)


@pytest.mark.parametrize("when", ["save", "step", "epoch"])
def test_features_are_those_of_the_folder_with_the_rates_of_the_steps(
    when: str, tmp_path: Path
) -> None:
    data, own = {"train": ragged()}, tmp_path / "own.zarr"
    callback = trainer_callback(data, own, when=when, projector=IDENTITY, batch_size=8)
    trainer(tmp_path / "out", callback).train()
    store = ts.open_store(own)
    job = Job(
        copy.deepcopy(model()),
        {"train": [{"input_ids": row["input_ids"]} for row in ragged()]},
        projector=IDENTITY,
        checkpoints=tmp_path / "out",
        collate=padded,
        batch_size=8,
    )
    featurize_job(job, tmp_path / "later.zarr", progress=False)
    later = ts.open_store(tmp_path / "later.zarr")
    assert store.epochs == {"save": (2, 4), "step": (1, 2, 3, 4), "epoch": (1, 2)}[when]
    for step in (2, 4):
        epoch = step // 2 if when == "epoch" else step
        assert np.array_equal(store.features(epoch, "train"), later.features(step, "train"))
        rates = [s.split(e, "train").spec.learning_rate for s, e in ((store, epoch), (later, step))]
        assert rates[0] == pytest.approx(rates[1]) and rates[0] is not None and rates[0] > 0
        # What training leaves in a model, and what a fresh one lacks, is no other setting.
        own_settings, fresh = (
            s.split(e, "train").spec.settings for s, e in ((store, epoch), (later, step))
        )
        assert own_settings == fresh != ()


def test_a_training_goes_on_with_a_store_that_has_a_scale(tmp_path: Path) -> None:
    data, where = {"train": ragged()}, tmp_path / "s.zarr"
    options: dict[str, Any] = {"when": "save", "projector": IDENTITY, "batch_size": 8}
    first = trainer_callback(data, where, scale="samples", **options)
    trainer(tmp_path / "out", first).train()
    again = trainer_callback(data, where, **options)
    trainer(tmp_path / "out", again, max_steps=6).train(resume_from_checkpoint=True)
    store = ts.open_store(where)
    assert store.epochs == (2, 4, 6)
    assert store.spec.scale is not None and store.spec.scale.source == "samples"


def test_what_cannot_work_is_refused_before_training(tmp_path: Path) -> None:
    def fails(error: type[Exception], message: str, **options: Any) -> None:
        started = trainer(tmp_path / "out", trainer_callback(**options))
        with pytest.raises(error, match=message):
            started.train()
        assert started.state.global_step == 0

    data, where = {"train": ragged()}, tmp_path / "s.zarr"
    fails(TrakStoreError, "output='causal_lm'", datasets=data, store=where, output="margin")
    empty: dict[str, Any] = {"train": []}
    fails(TrakStoreError, "'train' is empty", datasets=empty, store=where)
    long = [{"input_ids": [2, 50], "source": 1}] * 3
    fails(TrakStoreError, "does not take the first samples", datasets={"test": long}, store=where)
    assert not where.exists()
    with pytest.raises(TrakStoreError, match="the callback sets epoch itself"):
        trainer_callback(data, where, epoch=3)
    ts.FeatureStore.create(where, projection=ts.ProjectionSpec("sjlt", 8))
    options = {"datasets": data, "store": where, "projector": IDENTITY}
    fails(SpecMismatchError, "holds .*projection", **options)


def test_groups_with_rates_of_their_own_have_none_in_common(tmp_path: Path) -> None:
    callback = trainer_callback({"train": ragged()}, tmp_path / "s.zarr", projector=IDENTITY)
    training = trainer(tmp_path / "out", callback, max_steps=2)
    first, *others = training.model.parameters()
    groups = [{"params": [first], "lr": 0.1}, {"params": others, "lr": 0.01}]
    training.optimizer = torch.optim.SGD(groups)
    training.train()
    store = ts.open_store(tmp_path / "s.zarr")
    assert {store.split(e, "train").spec.learning_rate for e in store.epochs} == {None}
    assert not Job(model(), {"train": ragged()}, checkpoints=tmp_path / "out").learning_rates


def test_the_trainers_autocast_is_recorded(tmp_path: Path) -> None:
    callback = trainer_callback({"train": ragged()}, tmp_path / "s.zarr", projector=IDENTITY)
    trainer(tmp_path / "out", callback, bf16=True, max_steps=2).train()
    assert ts.open_store(tmp_path / "s.zarr").spec.autocast == "bfloat16"


def test_why_transformers_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise ImportError(f"cannot import {name}: libfoo.so is missing")

    monkeypatch.setitem(sys.modules, "transformers", Broken())
    with pytest.raises(TrakStoreError, match=r"needs transformers .*libfoo\.so is missing"):
        trainer_callback({}, "s.zarr")


RANKS = """
import sys
from pathlib import Path
import features.test_callback as here
from trakstore.features.callback import trainer_callback

out = Path(sys.argv[1])
callback = trainer_callback(
    {"train": here.ragged()}, out / "s.zarr", when="save", projector=here.IDENTITY, block_rows=2,
    batch_size=2,
)
here.trainer(out / "out", callback, ddp_backend="gloo", per_device_train_batch_size=2).train()
"""


@pytest.mark.slow
def test_processes_that_train_share_the_samples(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    paths = f"{Path(ts.__file__).parent.parent}:{Path(__file__).parent.parent}"
    subprocess.run(
        [*command, "--standalone", str(script), str(tmp_path)],
        check=True,
        timeout=200,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )
    store = ts.open_store(tmp_path / "s.zarr")
    assert store.epochs == (2, 4) and store.split(4, "train").complete
    collated = [{"input_ids": row["input_ids"]} for row in ragged()]
    job = Job(model(), {"train": collated}, projector=IDENTITY, checkpoints=tmp_path / "out")
    job.collate, job.batch_size = padded, 2
    featurize_job(job, tmp_path / "later.zarr", progress=False)
    later = ts.open_store(tmp_path / "later.zarr").features(4, "train")
    np.testing.assert_allclose(store.features(4, "train"), later, rtol=1e-4, atol=1e-6)
    assert json.loads((tmp_path / "out/checkpoint-4/trainer_state.json").read_text())
