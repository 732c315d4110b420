"""Answers to single questions at once: from Python, over HTTP, on a live page.

Places for additions:

- a way to say what is asked about, such as a text: ``question.py``; ``new_samples.py`` makes samples;
- part of an answer: ``answer_data.py``; ``answer.html`` shows it, on the page and in a notebook;
- an address of the service: ``routes.py``; ``description.py`` describes it for OpenAPI;
- a limit on what others may ask: ``limits.py``.
"""

from __future__ import annotations

from trakstore.serve.answer import Answer
from trakstore.serve.answer_data import Entry
from trakstore.serve.query import Query

__all__ = ["Answer", "Entry", "Query"]
