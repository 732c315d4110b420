"""What README.md shows works: its Python blocks run in order, its command lines parse."""

from __future__ import annotations

import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import check_options, check_whole, trakstore_lines
from page_blocks import Block, blocks, run_block
from torch import nn
from torch.utils.data import TensorDataset

from trakstore.attributors import TrainingDynamicsTracker
from trakstore.cli.demo import load_images
from trakstore.features import featurize_job

README = Path(__file__).parent.parent / "README.md"
SPOKEN_OF = (5, 10, 50, 100, 1000)  # epochs in the blocks
TRAINED_ELSEWHERE = (
    "finetuned",
)  # jobs of a Trainer's folder: the tests of examples run such a one


def split(name: str, rows: int) -> TensorDataset:
    side = load_images()[name]
    return TensorDataset(*(torch.from_numpy(a[:rows]) for a in (side.images, side.labels)))


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a reader is taken to have: a model, its checkpoints, and data."""
    monkeypatch.chdir(tmp_path)
    for epoch in SPOKEN_OF:
        torch.save(make_model(epoch).state_dict(), f"ckpt-{epoch}.pt")
    train, test = split("train", 120), split("test", 20)
    model = make_model(10)
    transformers = pytest.importorskip("transformers")
    transformers.ByT5Tokenizer().save_pretrained("my-model")
    return {
        **{"make_model": make_model, "model": model, "dataset": train},
        **{"train": train, "test": test, "__name__": "readme"},
    }


def featurize_as_told(block: Block, names: dict[str, Any]) -> None:
    """Write the features of the jobs that a shell block names, at all epochs spoken of."""
    for words in trakstore_lines(block.text):
        if words[:1] == ["featurize"]:
            _, job = words[1].split(":")
            if job in TRAINED_ELSEWHERE:
                continue
            checkpoints = {epoch: f"ckpt-{epoch}.pt" for epoch in SPOKEN_OF}
            whole = dataclasses.replace(names[job](), checkpoints=checkpoints)
            place = words[words.index("--store") + 1]
            featurize_job(whole, place, progress=False)
            watch_training(place, names["train"])


def watch_training(place: str, train: TensorDataset) -> None:
    """Leave in the store what a tracker saw of a training."""
    images, labels = train.tensors
    with TrainingDynamicsTracker(train, store=place) as tracker, torch.no_grad():
        for epoch in SPOKEN_OF:
            logits = make_model(epoch)(images)
            tracker.update(epoch, 0, images, labels, logits, ids=range(len(train)))


@pytest.mark.slow
def test_the_python_blocks_run(names: dict[str, Any]) -> None:
    found, ran = blocks(README.read_text()), 0
    assert {one.language for one in found} <= {"python", "bash", "text", "json"}
    for block in found:
        if block.language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the data are few
                run_block(README, block, names)
            ran += 1
        elif block.language == "bash":
            featurize_as_told(block, names)
    assert ran >= 3


def test_the_command_lines_parse() -> None:
    text = README.read_text()
    lines = [
        words
        for block in blocks(text)
        if block.language == "bash"
        for words in trakstore_lines(block.text)
    ]
    assert len(lines) >= 6
    for words in lines:
        check_whole(words)


def test_the_options_in_the_prose_exist() -> None:
    prose = re.sub(r"^```.*?^```$", "", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    inline = [one for one in re.findall(r"`([^`]+)`", prose) if one.startswith("trakstore ")]
    assert len(inline) >= 5
    for one in inline:
        (words,) = trakstore_lines(" ".join(one.split()))
        check_options(words)


@pytest.mark.parametrize(
    "line", ["topk run.zarr --kk 5", "topk", "kernle run.zarr", "topk a --k x"]
)
def test_what_does_not_parse_is_seen(line: str) -> None:
    (words,) = trakstore_lines(f"cd a && .venv/bin/trakstore {line}")
    with pytest.raises(
        Exception, match=r"No such option|Missing|no such command|Invalid|valid int"
    ):
        check_whole(words)
