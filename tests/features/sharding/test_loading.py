"""Ranks that load a checkpoint: each reads its own part of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from features.sharding.launched import torchrun


@pytest.mark.slow
def test_a_rank_reads_its_own_part_of_a_checkpoint(tmp_path: Path) -> None:
    done = torchrun(4, "loading.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines() if line]
    assert len(told) == 4 * (4 + 2)
    for way, name, counted, own, whole, right in told:
        assert right == "True"
        assert int(own) < 0.26 * int(whole)
        if name != "ranks":
            assert int(own) <= int(counted) < int(own) + 100, (way, name)
        else:  # whole chunks are read there, which are rows of FSDP's ranks
            most = 0.3 if way == "fsdp" else 0.4
            assert int(own) <= int(counted) < most * int(whole), (way, name)
