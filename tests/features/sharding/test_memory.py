"""Peak memory of a rank beside that of one process with the whole model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from features.sharding.launched import HERE, environment, torchrun
from features.sharding.memory import build
from safetensors.torch import save_model


@pytest.mark.slow
def test_a_rank_of_four_takes_less_than_half_of_what_one_process_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    size = sum(4 * one.numel() for one in model.parameters())
    assert size > 400e6
    save_model(model, str(tmp_path / "weights.safetensors"))
    del model
    alone = subprocess.run(
        [sys.executable, str(HERE / "memory.py"), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    whole = int(alone.stdout.split()[-1])
    assert whole > size
    done = torchrun(4, "memory.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    ranks = [int(line) for line in done.stdout.split()]
    assert len(ranks) == 4
    assert max(ranks) < 0.45 * whole, f"{ranks} of {whole}"
