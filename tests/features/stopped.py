"""Runs that are stopped before one of their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from trakstore.features.task import SplitTask


@contextmanager
def stopped_after(blocks: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Within, a run is interrupted as by Ctrl-C before its next block; gives those that it did."""
    write, done = SplitTask.write, list[int]()

    def stops(self: SplitTask, block: int, then: int | None = None) -> None:
        if len(done) == blocks:
            raise KeyboardInterrupt
        done.append(block)
        write(self, block, then)

    with monkeypatch.context() as patch:
        patch.setattr(SplitTask, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            yield done
