"""Counters of the service, in the text format of Prometheus."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

_EDGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """Numbers of requests by path and status, seconds of answers, and questions in progress."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._counts = [0] * (len(_EDGES) + 1)
        self._seconds = 0.0
        self.waiting = 0

    def request(self, path: str, status: int) -> None:
        """Count a request; ``path`` is one of the service's own."""
        with self._lock:
            self._requests[path, status] += 1

    def answered(self, seconds: float) -> None:
        """Count an answer that took some seconds."""
        with self._lock:
            self._counts[bisect_left(_EDGES, seconds)] += 1
            self._seconds += seconds

    def text(self) -> str:
        """Return all counters in the format that Prometheus reads."""
        with self._lock:
            return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield "# HELP trakstore_requests_total Requests by path and status."
        yield "# TYPE trakstore_requests_total counter"
        for (path, status), count in sorted(self._requests.items()):
            yield f'trakstore_requests_total{{path="{path}",status="{status}"}} {count}'
        yield "# HELP trakstore_questions Questions that wait or are being answered."
        yield "# TYPE trakstore_questions gauge"
        yield f"trakstore_questions {self.waiting}"
        name, total = "trakstore_answer_seconds", 0
        yield f"# HELP {name} Seconds from a question to its answer."
        yield f"# TYPE {name} histogram"
        for edge, count in zip((*map(str, _EDGES), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{edge}"}} {total}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {total}"
