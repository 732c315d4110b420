"""Texts, names and other labels in samples are carried along: features are those without them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import CausalLM, CrossEntropy, Job, Margin, Weighted, featurize
from trakstore.features.batches import Batches
from trakstore.features.fingerprint import dataset_fingerprint
from trakstore.features.outputs import ModelOutput, as_output
from trakstore.features.predictions import predicted_classes
from trakstore.features.sample_columns import SampleColumns, _tell
from trakstore.report.sample_source import sample_source

tf = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CPU = torch.device("cpu")
WORDS = ["<pad>", "<mask>", *"abcdefghijklmnopqr"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
IDENTITY = ts.ProjectionSpec("identity")


def tokenizer() -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}))
    special = {"pad_token": "<pad>", "mask_token": "<mask>", "unk_token": "<pad>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def language_model() -> Any:
    torch.manual_seed(0)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, vocab_size=20, pad_token_id=0))


def tagger() -> Any:
    torch.manual_seed(0)
    config = tf.BertConfig(**SMALL, vocab_size=20, num_labels=5, max_position_embeddings=16)
    return tf.BertForTokenClassification(config)


def classifier() -> Any:
    torch.manual_seed(0)
    config = tf.BertConfig(**SMALL, vocab_size=20, num_labels=3, max_position_embeddings=16)
    return tf.BertForSequenceClassification(config)


def rows(even: bool = False, **columns: Callable[[int, list[int]], Any]) -> list[dict[str, Any]]:
    """Rows of tokens, of several lengths unless they are even, and columns made of each."""
    generator = torch.Generator().manual_seed(1)
    sizes = [6] * 6 if even else [5, 7, 9, 6, 8, 4]
    tokens = [torch.randint(2, 20, (n,), generator=generator).tolist() for n in sizes]
    return [
        {"input_ids": ids} | {name: make(i, ids) for name, make in columns.items()}
        for i, ids in enumerate(tokens)
    ]


BESIDE: dict[str, Callable[[int, list[int]], Any]] = {
    "text": lambda _, ids: " ".join(WORDS[one] for one in ids),
    "meta": lambda i, _: {
        "url": f"http://{i}",
        "tags": ["a"] * i,
        "when": datetime(2020, 1, 1 + i),
    },
    "notes": lambda i, _: None if i % 2 else "seen",
    "spans": lambda i, _: [["a", i]] * i,
    "doc_id": lambda i, _: 100 + i,
}


def features(where: Path, model: Any, data: Any, **options: Any) -> Any:
    featurize(model, data, where, projector=IDENTITY, progress=False, **options)
    split = ts.open_store(where).split(0, "train")
    return split.column("features").read(0, len(data)), split


CASES: dict[str, tuple[Any, Any, bool, dict[str, Any], dict[str, Any]]] = {
    "torch": (language_model, lambda: None, True, {}, {"label": lambda i, _: i % 3}),
    "padding": (
        classifier,
        lambda: tf.DataCollatorWithPadding(tokenizer()),
        False,
        {"label": lambda i, _: i % 3},
        {"labels": lambda _, ids: ids},
    ),
    "causal": (
        language_model,
        lambda: tf.DataCollatorForLanguageModeling(tokenizer(), mlm=False),
        False,
        {},
        {"label": lambda i, _: i % 3, "length": lambda _, ids: len(ids)},
    ),
    "labels": (
        language_model,
        lambda: tf.DataCollatorForSeq2Seq(tokenizer(), label_pad_token_id=-100),
        False,
        {"labels": lambda _, ids: [-100, -100, *ids[2:]]},
        {"label": lambda i, _: i % 3},
    ),
    "tags": (
        tagger,
        lambda: tf.DataCollatorForTokenClassification(tokenizer()),
        False,
        {"labels": lambda _, ids: [one % 5 for one in ids]},
        {"label": lambda i, _: i % 3, "score": lambda i, _: i / 2},
    ),
    "default": (
        classifier,
        lambda: tf.default_data_collator,
        True,
        {"label": lambda i, _: i % 3},
        {"spread": lambda i, _: [i / 2, 1.0]},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_rows_without_what_is_beside(case: str, tmp_path: Path) -> None:
    model, collate, even, own, others = CASES[case]
    collate = collate()
    bare, split = features(tmp_path / "bare", model(), rows(even, **own), collate=collate)
    data = rows(even, **BESIDE, **own, **others)
    full, beside = features(tmp_path / "full", model(), data, collate=collate)
    assert np.abs(bare).max() > 0
    np.testing.assert_array_equal(full, bare)
    # What is carried along is a part of the data set: another text is other data.
    assert beside.spec.dataset != split.spec.dataset
    changed = [dict(row) for row in data]
    changed[2]["text"] += "!"
    ids = np.arange(len(data))
    assert (
        dataset_fingerprint(changed, ids) != dataset_fingerprint(data, ids) == beside.spec.dataset
    )
    # A report reads the data set itself.
    shown = sample_source(Job(model(), {"train": data}), None, [beside])("train", 1, 1)
    # Without a tokenizer the text stands for the tokens; with one, the tokens are the text.
    assert shown is not None and "".join(data[1]["text"].split()) in "".join(shown.text.split())


def test_what_is_left_out_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    _tell.cache_clear()
    with caplog.at_level(logging.INFO, logger="trakstore"):
        for name in ("a", "b"):
            data = rows(even=True, **BESIDE)
            features(tmp_path / name, language_model(), data, batch_size=2)
    said = [r.message for r in caplog.records if "carried along" in r.message]
    assert len(said) == 1 and said[0].endswith(": doc_id, meta, notes, spans, text")


def test_numbers_that_forward_does_not_take_are_refused_as_ever(tmp_path: Path) -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    wrong = [{"x": [1.0, 2.0], "label": 1, "speed": 2.0, "text": "a"}] * 3
    with pytest.raises(TrakStoreError, match=r"forward takes x, the rows also have 'speed': leave"):
        featurize(Named(2, 3), wrong, tmp_path / "s.zarr", progress=False)
    # A text that forward asks for by name is no tensor, and is not left out.
    texts = [{"x": "a", "label": 1}] * 3
    with pytest.raises(TrakStoreError, match=r"of type str at \['x'\]\[0\]: leave it out"):
        featurize(Named(2, 3), texts, tmp_path / "s.zarr", progress=False)
    tokens = rows(even=True, label=lambda _, ids: ids)
    with pytest.raises(
        TrakStoreError, match="rows have 'label': call a sequence's tokens 'labels'"
    ):
        featurize(language_model(), tokens, tmp_path / "s.zarr", progress=False)


def read(model: Any, output: ModelOutput, data: list[Any], collate: Any = None) -> Any:
    return Batches.of(model, output, data, CPU, collate).read(0, len(data))


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"label": lambda i, _: i % 3, "labels": lambda _, ids: ids}, "label"),
        ({"label": lambda _, ids: ids, "labels": lambda i, _: i % 3}, "labels"),
        ({"label": lambda *_: 2, "labels": lambda i, _: i % 3}, "labels"),
    ],
)
def test_a_classifier_takes_the_label_of_one_number(columns: Any, label: str) -> None:
    data = rows(even=True, **columns)
    for collate in (None, torch_rows):
        batch = read(classifier(), Margin(), data, collate)
        assert set(batch) == {"input_ids", label}
        assert Margin().labels(batch).tolist() == [i % 3 for i in range(6)]
        Margin().check(classifier(), batch)
    job = Job(classifier(), {"train": data})
    assert predicted_classes(job, 0, "train", np.arange(6)) is not None


def torch_rows(samples: list[Any]) -> Any:
    return {name: torch.tensor([one[name] for one in samples]) for name in samples[0]}


def test_a_model_that_is_given_a_label_keeps_it() -> None:
    class Conditional(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return x + label[:, None]

    data = [{"x": torch.ones(3), "label": 1, "labels": 2}] * 2
    assert set(read(Conditional(), CrossEntropy(), data)) == {"x", "label", "labels"}


def test_an_output_keeps_the_columns_that_it_reads() -> None:
    data = rows(**BESIDE, my_id=lambda i, _: float(i))
    collate = tf.DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    weighted = Weighted(CausalLM("loss"), "my_id")
    batch = read(language_model(), weighted, data, collate)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "my_id"}
    assert weighted(language_model(), batch).loss[0] == 0
    # What a function of the user reads is not known: numbers stay, whatever their names.
    own = as_output(lambda model, batch: model(input_ids=batch["input_ids"]).logits[:, 0, 0])
    batch = read(language_model(), own, rows(**BESIDE), collate)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "doc_id"}


def test_a_collator_of_ones_own_is_given_whole_samples_where_it_takes_them() -> None:
    def of_texts(samples: list[Any]) -> Any:
        made = tokenizer()([one["text"].split() for one in samples], is_split_into_words=True)
        return {
            **tf.DataCollatorWithPadding(tokenizer())(made),
            "text": [s["text"] for s in samples],
        }

    def padded(samples: list[Any]) -> Any:
        return dict(tokenizer().pad(samples, return_tensors="pt"))

    whole = rows(**BESIDE)
    wanted = read(language_model(), CausalLM(), rows(), padded)
    batch = read(language_model(), CausalLM(), [{"text": row["text"]} for row in whole], of_texts)
    assert torch.equal(batch["input_ids"], wanted["input_ids"]) and "text" not in batch
    with pytest.raises(ValueError, match="Unable to create tensor"):
        padded(whole)
    batch = read(language_model(), CausalLM(), whole, padded)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch["input_ids"], wanted["input_ids"])


def test_an_error_of_a_collator_is_told_in_a_line() -> None:
    def fails(_: list[Any]) -> Any:
        raise KeyError("speed")

    with pytest.raises(
        TrakStoreError, match=r"the collator, of samples 0 to \d: KeyError: 'speed'"
    ):
        read(language_model(), CausalLM(), rows(), fails)


def test_random_collators_are_refused_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tf.BertConfig(**SMALL, vocab_size=20, max_position_embeddings=16)
    model = tf.BertForMaskedLM(config)
    masking = tf.DataCollatorForLanguageModeling(tokenizer(), mlm=True, mlm_probability=0.4)
    options: dict[str, Any] = {"projector": IDENTITY, "progress": False}
    with pytest.raises(
        TrakStoreError,
        match=r"collate=DataCollatorForLanguageModeling masks tokens at random.*mask them once",
    ):
        featurize(model, rows(), tmp_path / "s.zarr", collate=masking, **options)
    # What it says to do works.
    once = [{k: v[0] for k, v in masking([row]).items() if k != "attention_mask"} for row in rows()]
    pads = tf.DataCollatorForTokenClassification(tokenizer())
    once = [row for row in once if (row["labels"] != -100).any()]
    assert len(once) > 2
    featurize(model, once, tmp_path / "s.zarr", collate=pads, **options)
    for noise in (torch.rand, torch.full):

        def noisy(samples: list[Any], noise: Any = noise) -> Any:
            size = (len(samples), 12)
            made = noise(size) if noise is torch.rand else noise(size, torch.nan)
            return made, torch.zeros(len(samples)).long()

        batches = Batches(rows(), CPU, noisy)
        if noise is torch.full:
            batches.need_repeatable(4)  # NaN is NaN
            continue
        with pytest.raises(TrakStoreError, match=r"collate=noisy is random: .* with a fixed seed"):
            batches.need_repeatable(4)


def test_columns_of_tuples_and_of_wrapped_models() -> None:
    columns = SampleColumns.of(nn.DataParallel(classifier()), Margin())
    assert {"input_ids", "token_type_ids"} < columns.arguments
    pairs = [(torch.ones(2), "a")]
    assert columns.without_metadata(pairs) is pairs and columns.as_trainer(pairs) is pairs


def test_a_collator_that_the_trainer_wrapped_is_known_by_what_it_wraps() -> None:
    """A Trainer of a list wraps its collator to drop columns, among them what an output reads."""

    def wrapped(inner: Any) -> Any:
        return tf.trainer_utils.RemoveColumnsCollator(inner, ["input_ids", "labels"])

    data = rows(**BESIDE, weight=lambda i, _: float(i))
    causal = wrapped(tf.DataCollatorForLanguageModeling(tokenizer(), mlm=False))
    weighted = Weighted(CausalLM("loss"), "weight")
    assert read(language_model(), weighted, data, causal)["weight"].tolist() == [0, 1, 2, 3, 4, 5]
    flat = read(language_model(), CausalLM(), data, wrapped(tf.DataCollatorWithFlattening()))
    assert flat["input_ids"].shape == (6, 9)
    masking = wrapped(tf.DataCollatorForLanguageModeling(tokenizer(), mlm=True))
    batches = Batches.of(language_model(), CausalLM(), data, CPU, masking)
    with pytest.raises(
        TrakStoreError, match="collate=DataCollatorForLanguageModeling masks tokens"
    ):
        batches.need_repeatable(3)
