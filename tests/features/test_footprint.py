"""Bytes that samples need, counted once for each of their shapes."""

from __future__ import annotations

import torch

from trakstore.features.footprint import Peaks


def test_needs_are_counted_once_for_each_shape() -> None:
    peaks, runs = Peaks(), []

    def run(rows: int) -> None:
        runs.append(rows)
        torch.zeros(rows, 10)

    for _ in range(3):
        assert peaks.of({"x": torch.zeros(2, 5), "y": torch.zeros(2)}, run) == (40, 80)
    assert runs == [1, 2]
    assert peaks.of({"x": torch.zeros(2, 6), "y": torch.zeros(2)}, run) == (40, 80)
    assert runs == [1, 2, 1, 2]
