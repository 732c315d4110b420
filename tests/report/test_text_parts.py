"""Texts become parts: prompts, what is learned, special tokens; long ones become excerpts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trakstore.report.text_parts import (
    ScoredPart,
    TextPart,
    excerpt,
    is_tokenizer,
    preview,
    token_parts,
)


class Words:
    """A tokenizer as sentencepiece makes them: a word has its space, the first of a text loses it."""

    words = ("<s>", "</s>", " a", " b", "\nc", " <b>", "\ud83d", "\ude00")
    all_special_ids = (0, 1)

    def decode(self, ids: list[int], **options: bool) -> str:
        assert options == {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = "".join(self.words[one] for one in ids)
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return joined.removeprefix(" ")


def parts(sample: Any) -> list[tuple[str, str]]:
    made = token_parts(sample, Words())
    assert made is not None
    return [(one.kind, one.text) for one in made]


def test_prompts_are_told_from_what_is_learned() -> None:
    ids, labels = [0, 2, 3, 4, 5, 1], [-100, -100, -100, 4, 5, 1]
    wanted = [
        ("special", "<s>"),
        ("prompt", " a b"),
        ("learned", "\nc <b>"),
        ("special", "</s>"),
    ]
    for make in (list, torch.tensor, np.array):
        assert parts({"input_ids": make(ids), "labels": make(labels)}) == wanted
    padded = {"input_ids": [1, 1, *ids], "labels": [-100, -100, *labels]}
    assert parts({**padded, "attention_mask": [0, 0, 1, 1, 1, 1, 1, 1]}) == wanted


@pytest.mark.parametrize(
    "sample",
    [
        {"input_ids": [2, 3]},
        {"input_ids": [2, 3], "labels": [2, 3]},
        {"input_ids": [2, 3], "labels": [-100, -100]},
        {"input_ids": [2, 3], "labels": 1},
        {"input_ids": [2, 3], "labels": torch.tensor(1)},
        torch.tensor([2, 3]),
        (torch.tensor([2, 3]), 1),
        [2, 3],
    ],
)
def test_without_both_a_text_is_plain(sample: Any) -> None:
    assert parts(sample) == [("plain", "a b")]


@pytest.mark.parametrize("sample", ["a", 3, 2.5, torch.zeros(3), {"x": 1}, {"input_ids": "a"}])
def test_what_has_no_tokens(sample: Any) -> None:
    assert token_parts(sample, Words()) is None


def test_labels_of_a_decoder_follow_the_input() -> None:
    wanted = [("prompt", "a"), ("special", "</s>"), ("plain", "\n"), ("learned", "b\nc")]
    assert parts({"input_ids": [2, 1], "labels": [3, 4, -100]}) == wanted
    assert parts({"input_ids": [2, 1], "labels": [3, 4]}) == wanted


def test_pairs() -> None:
    row = {
        "chosen_input_ids": [2, 3],
        "chosen_labels": [-100, 3],
        "rejected_input_ids": [2, 4],
        "rejected_labels": [-100, 4],
    }
    both = [("special", "chosen:\n"), ("prompt", "a"), ("learned", " b")]
    both += [("special", "\nrejected:\n"), ("prompt", "a"), ("learned", "\nc")]
    assert parts(row) == both


def test_a_character_of_two_tokens() -> None:
    assert parts({"input_ids": [2, 6, 7]}) == [("plain", "a\U0001f600")]
    cut = parts({"input_ids": [2, 6, 7], "labels": [-100, -100, 7]})
    assert [kind for kind, _ in cut] == ["prompt", "learned"]


def test_tokenizers_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.ByT5Tokenizer()
    assert (
        is_tokenizer(tokenizer) and not is_tokenizer(b"bytes") and not is_tokenizer(np.array("a"))
    )
    text = "def f():\n\treturn 'ä€😀'  # two  spaces\n"
    made = token_parts(tokenizer(text), tokenizer)
    assert made == (TextPart(text), TextPart("</s>", "special"))


def test_short_texts_have_no_preview() -> None:
    assert preview([TextPart("a\n" * 18)]) == () == preview([TextPart("a" * 900)])
    (first, mark) = preview([TextPart("a\n" * 19)])
    assert first.text == "a\n" * 12 and mark == TextPart("…", "special")
    assert [len(one.text) for one in preview([TextPart("a" * 901)])] == [600, 1]


def test_an_excerpt_is_of_whole_lines_of_their_kinds() -> None:
    text = [TextPart("one\ntwo ", "prompt"), TextPart("three\nfour\nfive", "learned")]
    assert excerpt(text, 100) == tuple(text)
    assert excerpt(text, 20) == (
        TextPart("one\ntwo ", "prompt"),
        TextPart("three\nfour\n", "learned"),
        TextPart("…", "special"),
    )


def test_what_is_learned_is_seen_behind_a_long_prompt() -> None:
    lines = "".join(f"line {at}\n" for at in range(50))
    made = excerpt([TextPart(lines, "prompt"), TextPart("answer", "learned")], 600, 12)
    assert made == (
        TextPart("…\n", "special"),
        TextPart("line 47\nline 48\nline 49\n", "prompt"),
        TextPart("answer", "learned"),
    )
    made = excerpt([TextPart("x" * 900, "prompt"), TextPart("y" * 900, "learned")], 600, 12)
    assert [(one.kind, len(one.text)) for one in made] == [
        ("special", 1),
        ("prompt", 200),
        ("learned", 400),
        ("special", 1),
    ]


class Bytes:
    """A tokenizer whose tokens are bytes: 0 is the end."""

    all_special_ids = (0,)

    def decode(self, ids: Any, **_: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")


def test_tokens_with_scores_are_parts_of_their_own() -> None:
    ids = [*"é: aß".encode(), 0]
    labels = [-100] * 3 + ids[3:]
    sample = {"input_ids": ids, "labels": labels}
    scores = {3: 1.0, 4: -4.0, 5: 0.5, 6: 0.5, 7: 0.0}
    parts = token_parts(sample, Bytes(), scores)
    assert parts is not None
    # A character of two tokens is one part, whose score is the sum of both.
    assert [(one.text, one.kind) for one in parts] == [
        ("é:", "prompt"),
        (" ", "learned"),
        ("a", "learned"),
        ("ß", "learned"),
        ("\0", "special"),
    ]
    scored = [one for one in parts if isinstance(one, ScoredPart)]
    assert [one.tokens for one in scored] == [(3,), (4,), (5, 6), (7,)]
    assert [one.score for one in scored] == [1.0, -4.0, 1.0, 0.0]
    assert [one.share for one in scored] == [0.25, -1.0, 0.25, 0.0]
    assert [one.level for one in scored] == [2, -4, 2, 0]
    # A cut through a text leaves each part its score.
    first = excerpt(parts, 4)
    assert [one.score for one in first if isinstance(one, ScoredPart)] == [1.0, -4.0]


def test_scores_of_padded_texts_and_of_targets() -> None:
    padded = {"input_ids": [9, 65, 66], "attention_mask": [0, 1, 1]}
    parts = token_parts(padded, Bytes(), {2: 2.0})
    assert parts is not None
    assert [(one.text, isinstance(one, ScoredPart)) for one in parts] == [("A", False), ("B", True)]
    target = {"input_ids": [65, 66], "labels": [-100, 67, 68]}
    parts = token_parts(target, Bytes(), {1: 2.0, 2: 1.0})
    assert parts is not None
    assert [one.text for one in parts] == ["AB", "\n", "C", "D"]
    assert [one.tokens for one in parts if isinstance(one, ScoredPart)] == [(1,), (2,)]
