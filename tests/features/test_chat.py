"""Conversations: the assistant's tokens have labels, and nothing else has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trakstore.errors import TrakStoreError
from trakstore.features import chat_rows, count_tokens

tf = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "<s>",
    "</s>",
    "<user>",
    "<assistant>",
    "hello",
    "how",
    "are",
    "you",
    "fine",
    "thanks",
    "bye",
]
PLAIN = (
    "<s>{% for m in messages %} <{{ m.role }}> {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)
MARKED = (
    "<s>{% for m in messages %} <{{ m.role }}> {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }} </s>{% endgeneration %}{% else %}{{ m.content }} </s>{% endif %}{% endfor %}"
)
FORGETFUL = "{% for m in messages[-1:] %}<{{ m.role }}> {{ m.content }}{% endfor %}"

CHATS = [
    [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hello how are you"},
        {"role": "user", "content": "fine thanks"},
        {"role": "assistant", "content": "bye"},
    ],
    [{"role": "user", "content": "bye"}, {"role": "assistant", "content": "bye bye"}],
]


def tokenizer(template: str) -> Any:
    """Words are tokens; no start is added but the template's."""
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="bye")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", chat_template=template
    )


def words(ids: torch.Tensor) -> str:
    return " ".join(WORDS[i] if i >= 0 else "." for i in ids.tolist())


TRIMMED = MARKED.replace("{% generation %}", "{%- generation %}")


@pytest.mark.parametrize(
    "template", [PLAIN, MARKED, TRIMMED], ids=["by turns", "marked", "marked and trimmed"]
)
def test_labels_are_the_assistants_tokens(template: str) -> None:
    rows = chat_rows(CHATS, tokenizer(template))
    assert words(rows[0]["input_ids"]) == (
        "<s> <user> hello </s> <assistant> hello how are you </s> "
        "<user> fine thanks </s> <assistant> bye </s>"
    )
    assert words(rows[0]["labels"]) == ". . . . . hello how are you </s> . . . . . bye </s>"
    assert words(rows[1]["labels"]) == ". . . . . bye bye </s>"


def test_rows_are_cut_and_those_without_an_answer_refused() -> None:
    rows = chat_rows(CHATS, tokenizer(PLAIN), max_length=7)
    assert words(rows[0]["labels"]) == ". . . . . hello how"
    with pytest.raises(TrakStoreError, match="conversation 0 has no token of the assistant among"):
        chat_rows(CHATS, tokenizer(PLAIN), max_length=5)
    with pytest.raises(TrakStoreError, match="conversation 1 has no token of the assistant among"):
        chat_rows([CHATS[0], CHATS[0][:1]], tokenizer(PLAIN))
    with pytest.raises(TrakStoreError, match="max_length must be an integer, 1 or more, got 0"):
        chat_rows(CHATS, tokenizer(PLAIN), max_length=0)


def test_odd_conversations() -> None:
    first = [{"role": "assistant", "content": "hello"}]
    [row] = chat_rows([first], tokenizer(PLAIN))
    assert words(row["labels"]).endswith("hello </s>")
    with pytest.raises(
        TrakStoreError, match="conversation 0 needs turns with 'role' and 'content'"
    ):
        chat_rows([[{"content": "hello"}]], tokenizer(PLAIN))
    without = tokenizer(PLAIN)
    without.chat_template = None
    with pytest.raises(TrakStoreError, match="no chat template"):
        chat_rows(CHATS, without)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(TrakStoreError, match=r"conversation 0: .* earlier turns .* generation"):
        chat_rows(CHATS, tokenizer(FORGETFUL))


def test_tokens_that_count_are_counted_and_odd_rows_found() -> None:
    known = tokenizer(PLAIN)
    rows: list[Any] = chat_rows(CHATS, known)
    found = count_tokens(rows, known)
    assert (found.rows, found.tokens, found.counted) == (2, 17 + 8, 7 + 3)
    assert not (found.without_labels or found.doubled_starts or found.cut)
    assert str(found) == "2 rows, 25 tokens, 10 of them count (40%)"
    rows[1] = {"input_ids": [0, 0, 5, 1, 1], "attention_mask": [1, 1, 1, 1, 0]}
    rows.append({"input_ids": torch.arange(3), "labels": torch.tensor([1, -100, -100])})
    rows += chat_rows(CHATS[:1], known, max_length=16)
    rows[0] = {key: value[:16] for key, value in rows[0].items()}
    found = count_tokens(rows, known)
    assert (found.without_labels, found.doubled_starts, found.cut) == ((2,), (1,), (0, 3))
    assert found.tokens == 16 + 4 + 3 + 16 and found.counted == 6 + 3 + 0 + 6
    assert "; 1 without a label (row 2), 1 with two starts (row 1), 2 cut off (row 0" in str(found)
    assert count_tokens(rows).doubled_starts == ()
    with pytest.raises(TrakStoreError, match="row 0 needs 'input_ids', got tuple"):
        count_tokens([(1, 2)])
    with pytest.raises(TrakStoreError, match="row 0 has 2 input_ids, 1 labels and a mask of 2"):
        count_tokens([{"input_ids": [1, 2], "labels": [1]}])
