"""Entries of answers fit on a line when they are printed."""

from __future__ import annotations

from trakstore.report.sample import shown_text
from trakstore.report.scored_tokens import ScoredTokens
from trakstore.report.text_parts import ScoredPart, TextPart
from trakstore.serve.answer_data import Entry


def test_an_entry_of_a_text_is_printed_in_a_line() -> None:
    values = [0.25 * (-1) ** at * (at % 7) for at in range(500)]
    tokens = [ScoredPart(f"w{at} ", "learned", (at,), one) for at, one in enumerate(values)]
    scored = ScoredTokens((TextPart("Say: ", "prompt"), *tokens))
    entry = Entry("train-3", -0.12345, 3, shown=shown_text(scored.parts), tokens=scored)
    said = repr(entry)
    assert said.startswith("Entry('train-3' -0.123, 'Say: w0 w1 w2 ") and "\n" not in said
    assert said.endswith(", 500 tokens)") and len(said) < 120
    said = repr(scored)
    assert (
        said
        == "ScoredTokens(500 tokens; strongest: 'w6 ' +1.5, 'w13 ' \N{MINUS SIGN}1.5, 'w20 ' +1.5)"
    )
    assert repr(Entry(7, 2.0, 0)) == "Entry(7 +2)"
