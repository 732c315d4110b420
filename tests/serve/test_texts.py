"""Texts are asked about: made token ids by the tokenizer of the job's collator."""

from __future__ import annotations

from typing import Any

import pytest

import trakstore as ts
from trakstore.serve.question import BadQuestionError

transformers = pytest.importorskip("transformers")

LINES = [f"the {name} is {colour}" for name in ("sky", "sea", "sun") for colour in ("blue", "red")]


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> ts.Query:
    import torch

    from trakstore.features import Job, featurize_job

    folder = tmp_path_factory.mktemp("texts")
    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.model_max_length = 64
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=2
    )
    model = transformers.GPT2LMHeadModel(config)
    rows = [
        {name: made[name] for name in ("input_ids", "attention_mask")}
        | {"labels": made["input_ids"]}
        for made in (tokenizer(line) for line in LINES)
    ]
    job = Job(
        model,
        {"train": rows, "test": rows[:2]},
        projector=ts.ProjectionSpec("sjlt", dim=32),
        collate=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
        batch_size=1,
        ids={"train": LINES},
    )
    featurize_job(job, folder / "t.zarr", progress=False)
    return ts.Query(ts.open_store(folder / "t.zarr"), job, targets="test")


@pytest.mark.slow
def test_a_text_of_the_train_split_is_answered_as_its_row(query: ts.Query) -> None:
    assert query.takes == ["text"]
    for line in LINES[:3]:
        typed = query.ask(text=line, k=6)
        stored = query.ask(target=line, split="train", k=6)
        assert [one.id for one in typed.proponents] == [one.id for one in stored.proponents]
        assert [one.score for one in typed.proponents] == [one.score for one in stored.proponents]
        assert typed.proponents[0].id == line
        assert typed.shown is not None and typed.shown.text == line
        shown: Any = typed.proponents[0].shown
        assert shown.text.startswith(line)
    other = query.ask(text="the sky is green", k=6)
    assert other.proponents[0].score != query.ask(text=LINES[0], k=6).proponents[0].score


@pytest.mark.slow
def test_texts_that_are_too_long_or_no_samples(query: ts.Query) -> None:
    with pytest.raises(BadQuestionError, match="tokens"):
        query.ask(text="long " * 100, k=2)
    with pytest.raises(BadQuestionError, match="not made of images"):
        query.ask(image=b"", k=2)
    with pytest.raises(BadQuestionError, match="sample lacks"):
        query.ask({"input_ids": [1, 2]}, k=2)
    bad = {"input_ids": [5, 10**6], "attention_mask": [1, 1], "labels": [5, 6]}
    with pytest.raises(BadQuestionError, match="token ids must be from 0 to"):
        query.ask(bad, k=2)
    ids = [5, 6, 7]
    whole = {"input_ids": ids, "attention_mask": [1, 1, 1], "labels": ids}
    assert len(query.ask(whole, k=2).opponents) == 2
