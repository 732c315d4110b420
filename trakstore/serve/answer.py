"""``Answer``: the reply to a question, which shows itself in a notebook."""

from __future__ import annotations

import math
from html import escape

from trakstore.report.extras import need_extra
from trakstore.serve.answer_data import AnswerData
from trakstore.serve.rendering import answer_page

_BESIDE = 8  # entries that fit side by side in a usual notebook


class Answer(AnswerData):
    """First proponents and opponents of one sample; in a notebook, shown as on the live page.

    Examples
    --------
    >>> answer = ts.Query(store).ask(target="test-0", k=2)
    >>> answer.method, answer.epochs, [one.id for one in answer.proponents]
    ('trak', (2, 5, 15), ['train-9', 'train-15'])
    """

    def _repr_html_(self) -> str:
        """Show the lists in a frame that runs no script."""
        need_extra("an answer as HTML", "serve", "jinja2")
        rows = sum(math.ceil(len(one) / _BESIDE) for one in (self.proponents, self.opponents))
        tall = any(one.shown is not None for one in (*self.proponents, *self.opponents))
        height = min(900, 320 + rows * (200 if tall else 90))
        return (
            f'<iframe title="{escape(repr(self))}" sandbox srcdoc="{escape(answer_page(self))}" '
            f'style="width:100%;height:{height}px;border:0"></iframe>'
        )
