"""Samples made of texts, images and values: their classes, dtypes and bounds."""

from __future__ import annotations

import threading
import warnings
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trakstore.serve.new_samples import NewSamples
from trakstore.serve.opened_images import opened_image
from trakstore.serve.question import BadQuestionError, Question

torch = pytest.importorskip("torch")


class Letters:
    """A tokenizer with an id for each letter."""

    model_max_length = 6

    def __len__(self) -> int:
        return 128

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(one) for one in text], "attention_mask": [1] * len(text)}


CONFIG = SimpleNamespace(max_position_embeddings=5, type_vocab_size=2)


def made(example: Any, predicted: int | None = 2, model: Any = None, **asked: Any) -> Any:
    new = NewSamples([example], Letters(), model=model)
    return new.make(Question(**asked), lambda _: predicted)


@pytest.mark.parametrize("name", ["label", "labels"])
def test_the_class_in_a_dict_is_the_given_or_the_predicted_one(name: str) -> None:
    texts = {"text": "a", name: 1}
    assert made(texts, text="hello", label=0) == {"text": "hello", name: 0}
    assert made(texts, text="hello") == {"text": "hello", name: 2}
    with pytest.raises(BadQuestionError, match="give label"):
        made(texts, None, text="hello")
    tokens = {"input_ids": [1, 2], "attention_mask": [1, 1], name: torch.tensor(1)}
    answer = made(tokens, text="abc", label=0)
    assert answer == {"input_ids": [97, 98, 99], "attention_mask": [1, 1, 1], name: 0}
    assert answer[name].dtype == torch.int64


def test_a_row_of_labels_is_that_of_the_ids() -> None:
    row = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "source": "a"}
    answer = made(row, text="ab")
    assert (answer["input_ids"], answer["labels"]) == ([97, 98], [97, 98])
    with pytest.raises(BadQuestionError, match="no class: leave label out"):
        made(row, text="ab", label=1)


@pytest.mark.parametrize(
    ("example", "name"),
    [
        ({"text": "a", "weight": 0.5}, "weight"),
        ({"input_ids": [1, 2], "labels": [1, 2, 3]}, "labels"),
        ({"input_ids": [1, 2], "label": 1, "age": 40}, "age"),
    ],
)
def test_fields_that_a_text_does_not_say_are_refused(example: Any, name: str) -> None:
    with pytest.raises(BadQuestionError, match=f"samples of this job have {name}, which a text"):
        made(example, text="ab", label=0)


@pytest.mark.parametrize(
    ("example", "given"),
    [
        ({"input_ids": [1, 2]}, {"input_ids": [True, False]}),
        ({"input_ids": [1, 2]}, {"input_ids": [7, True]}),
        ((np.zeros(2, np.float32), 0), [[0.5, True], 1]),
        ((torch.zeros(2), 0), [torch.tensor([True, False]), 1]),
        (np.zeros((2, 2), np.int64), [[1, 2], [3, False]]),
        (np.zeros(2, np.int64), [3, np.True_]),
    ],
)
def test_booleans_are_no_numbers(example: Any, given: Any) -> None:
    with pytest.raises(
        BadQuestionError, match=r"must be (numbers|integers) .*(\(bool\)|, got true or false)"
    ):
        made(example, sample=given)


def test_booleans_are_those_of_a_mask() -> None:
    mask = made({"mask": torch.zeros(2, dtype=torch.bool)}, sample={"mask": [True, False]})["mask"]
    assert mask.dtype == torch.bool and mask.tolist() == [True, False]


def test_a_label_beside_what_has_its_own_is_refused() -> None:
    with pytest.raises(BadQuestionError, match="a target has its own"):
        Question(target=1, label=0)
    with pytest.raises(BadQuestionError, match="a sample says its own label"):
        made((torch.zeros(2), 0), sample=[[1, 2], 0], label=1)


def test_integers_that_the_dtype_does_not_hold_are_refused() -> None:
    pixels = (torch.zeros(2, 2, dtype=torch.uint8), 0)
    assert made(pixels, sample=[[[255, 1], [2, 0]], 1])[0].tolist() == [[255, 1], [2, 0]]
    for bad in (256, -1, 10**30):
        with pytest.raises(BadQuestionError, match=r"sample\[0\] must be from 0 to 255 \(uint8\)"):
            made(pixels, sample=[[[bad, 1], [2, 3]], 0])
    for bad in (2**63, 10**30):
        with pytest.raises(BadQuestionError, match=r"label must be from -9.* \(int64\)"):
            made(pixels, image=np.zeros((2, 2), np.uint8), label=bad)
    switches = (torch.zeros(2, dtype=torch.bool), 0)
    with pytest.raises(BadQuestionError, match=r"from 0 to 1 \(bool\)"):
        made(switches, sample=[[2, 0], 0])


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("x", r"label must be integers of shape \(\) \(int64\), got shape \(\) \(no numbers\)"),
        (1.5, r"label must be integers of shape \(\) \(int64\), got shape \(\) \(float64\)"),
        (10**30, r"label must be from -9223372036854775808 to 9223372036854775807 \(int64\)"),
    ],
)
def test_a_label_that_does_not_fit_is_told_with_its_dtype(label: Any, message: str) -> None:
    example = (torch.zeros(1, 2, 2), torch.tensor(0))
    with pytest.raises(BadQuestionError, match=message):
        made(example, image=np.zeros((2, 2), np.uint8), label=label)


def test_images_of_16_bits_are_scaled_and_of_32_refused() -> None:
    from PIL import Image

    values = np.array([[0, 257], [20_000, 65_535]], dtype=np.uint16)
    file = BytesIO()
    Image.fromarray(values).save(file, "PNG")
    example = torch.zeros(1, 2, 2, dtype=torch.uint8)
    assert made(example, image=file.getvalue()).tolist() == [[[0, 1], [78, 255]]]
    for dtype in (np.int32, np.float32):
        with pytest.raises(BadQuestionError, match="32 bits"):
            made(example, image=Image.fromarray(values.astype(dtype)))


def test_opening_an_image_changes_no_filter_of_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    file = BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    begun, go_on, real = threading.Event(), threading.Event(), Image.open

    def slow(*given: Any, **how: Any) -> Any:
        begun.set()
        go_on.wait(5)
        return real(*given, **how)

    monkeypatch.setattr(Image, "open", slow)
    thread = threading.Thread(target=opened_image, args=(file.getvalue(),))
    before = list(warnings.filters)
    thread.start()
    begun.wait(5)
    meanwhile = list(warnings.filters)
    go_on.set()
    thread.join()
    assert meanwhile == before


def test_the_number_of_tokens_and_their_range_are_bounded() -> None:
    words = torch.nn.Embedding(100, 2)
    model = SimpleNamespace(config=CONFIG, get_input_embeddings=lambda: words)
    fields = {"input_ids": [1, 2], "labels": [1, 2], "token_type_ids": [0, 0]}

    def asked(ids: list[int], labels: list[int], types: list[int]) -> Any:
        sample = {"input_ids": ids, "labels": labels, "token_type_ids": types}
        return made(fields, model=model, sample=sample)

    assert asked([99] * 5, [-100, 99, 0, 0, 0], [1] * 5)["input_ids"] == [99] * 5
    for given, message in (
        (([1] * 6, [1] * 6, [0] * 6), "has 6 tokens; 1 to 5"),
        (([100], [1], [0]), "from 0 to 99, got 100 to 100 in input_ids"),
        (([1], [100], [0]), "from 0 to 99, got 100 to 100 in labels"),
        (([1], [-1], [0]), "got -1 to -1 in labels"),
        (([1], [1], [2]), "from 0 to 1, got 2 to 2 in token_type_ids"),
    ):
        with pytest.raises(BadQuestionError, match=message):
            asked(*given)
    with pytest.raises(BadQuestionError, match="the text has 6 tokens; 1 to 5"):
        made({"input_ids": [1]}, model=model, text="abcdef")
    with pytest.raises(BadQuestionError, match="the text has 7 tokens; 1 to 6"):
        made({"input_ids": [1]}, text="abcdefg")
    with pytest.raises(BadQuestionError, match="32,768 is the most"):
        made(torch.zeros(3, dtype=torch.int64), sample=[1] * 40_000)


def test_a_sample_has_a_label_of_each_token_where_the_jobs_have() -> None:
    fields = {"input_ids": [1, 2], "labels": [1, 2]}
    encoder = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    other = {"input_ids": [1, 2, 3], "labels": [1, 2]}
    with pytest.raises(BadQuestionError, match="has 2 labels of 3 tokens"):
        made(fields, sample=other)
    for example, model in (({**fields, "labels": [1, 2, 3]}, None), (fields, encoder)):
        assert made(example, model=model, sample=other)["labels"] == [1, 2]


def test_the_data_set_is_free_while_the_class_is_predicted() -> None:
    new = NewSamples([{"text": "a", "label": 1}])

    def predict(_: Any) -> int:
        assert not new.lock.locked()
        return 0

    assert new.make(Question(text="b"), predict) == {"text": "b", "label": 0}
