"""Rows of models in which padding changes what is computed: they are those of each sample alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.padded_texts import LONG, ROWS, WORDS, Pad, Placed, Pooled, Texts
from features.stopped import stopped_after
from numpy.typing import NDArray
from torch import Tensor, nn

import trakstore as ts
from trakstore.features import CausalLM, featurize, selfcheck
from trakstore.features.blockcheck import checked_rows
from trakstore.features.outputs import as_output

SIZE = 8
OPTIONS: dict[str, Any] = {
    "projector": ts.ProjectionSpec("identity"),
    "batch_size": SIZE,
    "progress": False,
    "block_rows": 32,
}


def alone(model: nn.Module, samples: Texts, output: Any, collate: Any) -> NDArray[np.float32]:
    """Gradients of each sample by itself, by autograd and nothing of the library's but the output."""
    every = []
    for one in samples:
        scalar = as_output(output)(model.eval(), collate([one])).output.sum()
        own = torch.autograd.grad(
            scalar, list(model.parameters()), allow_unused=True, materialize_grads=True
        )
        every.append(torch.cat([gradient.reshape(-1) for gradient in own]))
    return torch.stack(every).numpy()


def written(model: nn.Module, samples: Any, path: Path, output: Any, **options: Any) -> Any:
    featurize(model, samples, path, output=output, **OPTIONS | options)
    return ts.open_store(path)


def by_name(samples: Texts, collate: Pad) -> Callable[[list[int]], dict[str, Tensor]]:
    """Return a collator that reads the samples, of which the data set has the numbers alone."""
    return lambda names: collate([samples[name] for name in names])


def short_where_no_row_is_drawn() -> Texts:
    """Texts whose short ones are not compared in the first three blocks, and one is in the fourth."""
    drawn = [int(checked_rows(start, start + SIZE, SIZE)[0]) for start in range(0, ROWS, SIZE)]
    missed = {row for row in range(2, 3 * SIZE) if row not in drawn}
    return Texts({*list(missed)[::5], drawn[3]})


def assert_rows(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
    apart = np.linalg.norm(got - wanted, axis=1) > 1e-4 * np.linalg.norm(wanted, axis=1)
    assert not apart.any(), np.flatnonzero(apart)


@pytest.mark.parametrize("check", ["some", "all"])
@pytest.mark.parametrize("every", [40, 3])
def test_rows_that_are_padded_at_the_left_are_those_of_each_sample_alone(
    every: int, check: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, samples, collate = Placed(), Texts(range(17, ROWS, every)), Pad("left")
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        store = written(
            model, samples, tmp_path / "s.zarr", CausalLM(), collate=collate, check=check
        )
    assert_rows(store.features(0, "train").values, alone(model, samples, CausalLM(), collate))
    lines = [one.message for one in caplog.records]
    assert len(lines) == 1 and "train at epoch 0: padding changes what the model" in lines[0]
    assert "pad at the right, pass position_ids, or samples of one length" in lines[0]


def test_gradients_that_padding_at_the_left_changes_are_far_from_right() -> None:
    """Else the test above would say nothing."""
    model, samples, collate = Placed(), Texts(), Pad("left")
    short = samples.short[0]
    batch = collate([samples[short], samples[0]])
    one = {name: leaf[:1] for name, leaf in batch.items()}
    wrong = alone(model, [one], CausalLM(), lambda few: few[0])  # type: ignore[arg-type]
    right = alone(model, [samples[short]], CausalLM(), collate)  # type: ignore[arg-type]
    assert np.linalg.norm(wrong - right) > 0.1 * np.linalg.norm(right)


def test_every_row_is_read_alone_where_sizes_say_nothing_of_padding(tmp_path: Path) -> None:
    """Where a data set gives names of files, and a collator reads them."""
    model, samples, collate = Placed(), Texts(), Pad("left")

    store = written(
        model,
        range(ROWS),
        tmp_path / "s.zarr",
        CausalLM(),
        collate=by_name(samples, collate),
        check="all",
    )
    assert_rows(store.features(0, "train").values, alone(model, samples, CausalLM(), collate))


def test_blocks_before_are_written_again(tmp_path: Path) -> None:
    """Where sizes say nothing, a row of a block is drawn, and padding of others is not seen."""
    samples = short_where_no_row_is_drawn()
    model, collate = Placed(), Pad("left")

    options = {"collate": by_name(samples, collate), "block_rows": SIZE}
    store = written(model, range(ROWS), tmp_path / "s.zarr", CausalLM(), **options)
    assert_rows(store.features(0, "train").values, alone(model, samples, CausalLM(), collate))


def test_blocks_of_a_run_that_was_stopped_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = short_where_no_row_is_drawn()
    model, collate = Placed(), Pad("left")

    options, where = {"collate": by_name(samples, collate), "block_rows": SIZE}, tmp_path / "s.zarr"
    whole = written(model, range(ROWS), tmp_path / "w.zarr", CausalLM(), **options)
    with stopped_after(2, monkeypatch):
        written(model, range(ROWS), where, CausalLM(), **options)
    store = written(model, range(ROWS), where, CausalLM(), **options)
    assert store.split(0, "train").spec.doubted == "padding"
    got = store.features(0, "train").values
    assert_rows(got, alone(model, samples, CausalLM(), collate))
    assert got.tobytes() == whole.features(0, "train").values.tobytes()


def test_activations_and_drawn_labels_are_of_samples_that_are_not_padded(tmp_path: Path) -> None:
    model, samples, collate = Pooled(), Texts(), Pad("left", labels=True)
    columns = []
    for name, size in (("batches", SIZE), ("alone", 1)):
        options = {"collate": collate, "batch_size": size, "activations": ("head.input",)}
        for labels in ("given", "sampled"):
            own = options | {"labels": labels, "draws": 2} if labels == "sampled" else options
            store = written(model, samples, tmp_path / f"{name}{labels}.zarr", "margin", **own)
            (split,) = store.splits_of(0)
            kept = store.split(0, split)
            columns.append({one: kept.column(one).read(0, kept.rows) for one in kept.columns})
    for padded, own in zip(columns[:2], columns[2:], strict=True):
        assert padded.keys() == own.keys()
        for name in ("features", "loss", "output", "label", "activations.head.input"):
            np.testing.assert_allclose(padded[name], own[name], rtol=1e-4, atol=1e-5)


def test_rows_that_padding_makes_nan_are_not_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, samples, collate = Pooled(spoiled=True), Texts(), Pad("right", labels=True)
    options = {"collate": collate, "skip_bad_rows": True}
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        store = written(model, samples, tmp_path / "s.zarr", "margin", **options)
    assert not len(store.split(0, "train").skipped)
    assert_rows(store.features(0, "train").values, alone(model, samples, "margin", collate))
    assert any("padding changes what the model" in one.message for one in caplog.records)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of each ordinary backward pass that rows are compared with."""
    seen, backward = list[int](), selfcheck.backward

    def counted(model: Any, output: Any, parameters: Any, batch: Any, *rest: Any) -> Any:
        seen.append(len(batch["input_ids"]))
        return backward(model, output, parameters, batch, *rest)

    monkeypatch.setattr(selfcheck, "backward", counted)
    return seen


FINE: dict[str, Any] = {
    "right": Pad("right"),
    "left with places": Pad("left", places=True),
}


@pytest.mark.parametrize("name", FINE)
def test_padding_that_changes_nothing_costs_one_pass_of_one_sample(
    name: str, passes: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, samples, collate = Placed(), Texts(), FINE[name]
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        store = written(
            model, samples, tmp_path / "s.zarr", CausalLM(), collate=collate, block_rows=96
        )
    assert not caplog.messages
    assert_rows(store.features(0, "train").values, alone(model, samples, CausalLM(), collate))
    # Of the block, one sample alone and the three that are compared; one of the two tried before.
    assert passes[-2:] == [1, 3] and passes.count(3) == 1
    first = passes.copy()
    passes.clear()
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        written(model, samples, tmp_path / "t.zarr", CausalLM(), collate=collate, check="all")
    assert len(passes) == len(first) - 2 + ROWS + 1
    assert not caplog.messages


def transformer(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "pad_token_id": 0, "num_hidden_layers": 1}
    sizes |= {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    if name == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, n_positions=LONG
        )
        return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]
    if name == "bert":
        return transformers.BertForSequenceClassification(  # type: ignore[no-any-return]
            transformers.BertConfig(**sizes, num_labels=3, max_position_embeddings=LONG)
        )
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))  # type: ignore[no-any-return]


MODELS = [
    ("gpt2", Pad("left"), True),
    ("gpt2", Pad("right"), False),
    ("gpt2", Pad("left", places=True), False),
    ("bert", Pad("left", labels=True), True),
    ("bert", Pad("right", labels=True), False),
    ("llama", Pad("left"), False),
    ("llama", Pad("right"), False),
]


@pytest.mark.parametrize(
    ("name", "collate", "changes"), MODELS, ids=[f"{a}-{b.side}-{b.places}" for a, b, _ in MODELS]
)
def test_models_of_transformers(
    name: str, collate: Pad, changes: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Positions that turn queries and keys are relative: padding at the left changes nothing."""
    model, samples = transformer(name), Texts(rows=24)
    output = "margin" if name == "bert" else CausalLM()
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        store = written(model, samples, tmp_path / "s.zarr", output, collate=collate, check="all")
    assert_rows(store.features(0, "train").values, alone(model, samples, output, collate))
    lines = [one.message for one in caplog.records if one.name == "trakstore"]
    assert len(lines) == changes and all("padding changes" in one for one in lines)
