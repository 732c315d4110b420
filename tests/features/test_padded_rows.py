"""The most padded samples, compared with themselves without padding while all are read."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from features.padded_texts import Pad, Placed

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import CausalLM, selfcheck
from trakstore.features.batch_reader import BatchReader
from trakstore.features.batches import Batches
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.padded_rows import WatchedReader
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector

SIZES = [8, 8, 8, 7, 8, 7, 8, 5, 8, 6, 8, 8]
PAIRS = [np.arange(at, at + 2) for at in range(0, 12, 2)]


def watched(collate: Pad) -> WatchedReader:
    model = Placed().eval()
    selected = select_parameters(model, "*")
    projector = make_projector(ts.ProjectionSpec("identity"), parameter_spec(selected, "*"))
    engine = FactorisedEngine(model, CausalLM(), selected, projector)
    texts = [{"input_ids": torch.arange(1, size + 1)} for size in SIZES]
    reader = BatchReader(Batches(texts, torch.device("cpu"), collate), 2)
    return WatchedReader(reader, engine, None, "texts")


def test_only_more_padding_than_any_before_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    own, lengths = watched(Pad("right")), list[int]()
    own.engine.rows(own.reader.together(PAIRS[0]))
    backward = selfcheck.backward

    def noted(
        model: object, output: object, parameters: object, batch: dict, *rest: object
    ) -> None:
        lengths.append(batch["input_ids"].shape[1])
        backward(model, output, parameters, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(selfcheck, "backward", noted)
    seen = []
    for rows in [*PAIRS, *PAIRS]:
        (one,) = own.picked(rows)
        assert one.rows.tolist() == rows.tolist() and one.batch["input_ids"].shape == (2, 8)
        seen.append(lengths.copy())
        lengths.clear()
    # Padded and by itself: the sample of 7 tokens, and later that of 5.
    assert seen == [[], [8, 7], [], [8, 5], [], [], *[[]] * 6]
    assert own.reader.padded and own.most == 3


def test_samples_that_padding_changes_are_read_without(caplog: pytest.LogCaptureFixture) -> None:
    own = watched(Pad("left"))
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        parts = [[one.rows.tolist() for one in own.picked(rows)] for rows in PAIRS]
    assert parts == [[[0, 1]], [[2], [3]], [[4], [5]], [[6], [7]], [[8], [9]], [[10, 11]]]
    (line,) = caplog.messages
    assert line.startswith("texts: padding changes what the model computes")


def test_samples_that_the_model_does_not_take_are_named() -> None:
    own = watched(Pad("right"))
    own.reader.batches.dataset[3] = {"input_ids": torch.full((7,), 99)}
    with pytest.raises(TrakStoreError, match="the model does not take samples 2 to 3"):
        own.picked(PAIRS[1])
