"""Questions that are answered while one waits: from Python, over HTTP, on a live page.

Where something belongs:

- a way to say what is asked about, such as a text: ``question.py``; ``new_samples.py`` makes samples;
- what an answer holds: ``answer_data.py``, and ``answer.html`` shows it, on the page and in a notebook;
- an address of the service: ``routes.py``, described in ``description.py`` for OpenAPI;
- a limit on what others may ask: ``limits.py``.
"""

from __future__ import annotations

from trakstore.serve.answer import Answer
from trakstore.serve.answer_data import Entry
from trakstore.serve.query import Query

__all__ = ["Answer", "Entry", "Query"]
