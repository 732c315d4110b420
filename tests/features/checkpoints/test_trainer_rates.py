"""Learning rates of a Trainer's checkpoints are those of their own steps, or there are none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trakstore.errors import TrakStoreError
from trakstore.features.checkpoints import TrainerFolder
from trakstore.features.job import Job

# Halved at each step: that of step 1 is 1.
RATES = {step: 2.0 ** (1 - step) for step in range(1, 20)}


def saved(
    folder: Path,
    step: int,
    logged: dict[int, float],
    version: str | None = "5.2.0",
    following: Any = None,
    **more: Any,
) -> None:
    """Write what a Trainer keeps of its learning rates beside a checkpoint."""
    one = folder / f"checkpoint-{step}"
    one.mkdir(parents=True)
    history = [{"step": at, "learning_rate": rate} for at, rate in logged.items()]
    state = {"log_history": [*history, {"step": step, "eval_loss": 1.0}]}
    (one / "trainer_state.json").write_text(json.dumps(state))
    if version:
        (one / "config.json").write_text(json.dumps({"transformers_version": version}))
    if following is not None:
        torch.save({"_last_lr": following, "last_epoch": step, **more}, one / "scheduler.pt")


def test_rates_are_those_that_the_steps_used_or_absent(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    used: dict[int, float] = {}

    class Watch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
            used[state.global_step + 1] = more["optimizer"].param_groups[0]["lr"]

    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 8
    # steps that are saved, and those of them that are logged or follow on a saved schedule
    for name, logging_steps, save_steps, exact in (
        ("each", 1, 4, {4, 8, 12}),
        ("third", 3, 4, {12}),
        ("none", 500, 4, set()),
        ("following", 500, 1, {*range(2, 13)}),
    ):
        arguments = transformers.TrainingArguments(
            str(tmp_path / name), max_steps=12, per_device_train_batch_size=2, learning_rate=0.01,
            save_steps=save_steps, logging_steps=logging_steps, report_to=[], disable_tqdm=True,
            use_cpu=True,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[Watch()]).train()
        rates = TrainerFolder.of(tmp_path / name).rates
        assert rates.known == {step: used[step] for step in sorted(exact)}, name
        assert {*rates.unknown} == {*range(save_steps, 13, save_steps)} - exact
    assert used[12] == pytest.approx(0.01 / 12) and used[4] == pytest.approx(0.01 * 9 / 12)


def test_logs_of_old_versions_are_of_the_next_step(tmp_path: Path) -> None:
    before_4_51 = {step: RATES[step + 1] for step in range(1, 9)}
    saved(tmp_path, 4, before_4_51, "4.50.3", [RATES[5]])
    saved(tmp_path, 8, {8: RATES[9]}, "4.9.1", [RATES[9]])
    saved(tmp_path, 12, {12: RATES[12]}, "4.51.0", [RATES[13]])
    rates = TrainerFolder.of(tmp_path).rates
    assert rates.known == {4: RATES[4], 12: RATES[12]}
    assert rates.unknown == {8: f"not logged; the next step's is {RATES[9]:g}"}


def test_a_folder_without_a_version_shows_by_its_schedule_what_was_logged(tmp_path: Path) -> None:
    own, following = tmp_path / "own", tmp_path / "following"
    for step in (4, 8):
        saved(own, step, {step: RATES[step]}, None, [RATES[step + 1]])
        saved(following, step, {step: RATES[step + 1]}, None, [RATES[step + 1]])
        saved(tmp_path / "constant", step, {step: 0.5}, None, [0.5])
        saved(tmp_path / "no schedule", step, {step: RATES[step]}, None)
    assert TrainerFolder.of(own).rates.known == {4: RATES[4], 8: RATES[8]}
    assert TrainerFolder.of(following).rates.known == {}
    assert TrainerFolder.of(tmp_path / "constant").rates.known == {4: 0.5, 8: 0.5}
    assert TrainerFolder.of(tmp_path / "no schedule").rates.known == {4: RATES[4], 8: RATES[8]}


def test_groups_of_parameters_with_other_rates_have_no_rate_in_common(tmp_path: Path) -> None:
    saved(tmp_path, 4, {4: 0.1}, following=[0.1, 0.1], base_lrs=[0.2, 0.2])
    saved(tmp_path, 6, {6: 0.1}, following=[0.1, 0.01])
    saved(tmp_path, 8, {8: 0.1}, following=[0.0, 0.0], base_lrs=[0.2, 0.02])
    rates = TrainerFolder.of(tmp_path).rates
    assert rates.known == {4: 0.1}
    assert "groups of parameters have rates of their own (0.2, 0.02)" in rates.unknown[8]
    assert "(0.1, 0.01)" in rates.unknown[6]


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_strangers_schedule_runs_no_code_and_a_broken_one_tells_nothing(tmp_path: Path) -> None:
    states = {"code": {"_last_lr": [0.1], "more": Code(tmp_path / "touched")}, "list": [1, 2]}
    states |= {"tensors": {"_last_lr": [torch.ones(2)]}, "other": {"lr": 0.1}}
    for name, state in states.items():
        saved(tmp_path / name, 3, {})
        torch.save(state, tmp_path / name / "checkpoint-3/scheduler.pt")
    for name, content in {"cut": b"PK\x03\x04", "empty": b""}.items():
        saved(tmp_path / name, 3, {})
        (tmp_path / name / "checkpoint-3/scheduler.pt").write_bytes(content)
    for name in (*states, "cut", "empty"):
        saved(tmp_path / name, 4, {})
        assert TrainerFolder.of(tmp_path / name).rates.unknown == {3: "not logged", 4: "not logged"}
    assert not (tmp_path / "touched").exists()
    # The schedule that was saved before a step is the step's own.
    torch.save({"_last_lr": [torch.tensor(0.5)]}, tmp_path / "list/checkpoint-3/scheduler.pt")
    assert TrainerFolder.of(tmp_path / "list").rates.known == {4: 0.5}


def test_a_broken_state_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    for text in ("{", "[]", '{"log_history": 3}', '{"log_history": [{"learning_rate": 1}]}'):
        (tmp_path / "checkpoint-3/trainer_state.json").write_text(text)
        with pytest.raises(
            TrakStoreError, match=r"trainer_state.json is not what a Trainer writes"
        ):
            TrainerFolder.of(tmp_path)


def test_what_is_not_known_nor_given_is_said_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (4, 8, 12):
        saved(tmp_path, step, {4: RATES[4]}, following=[RATES[step + 1]])

    def told(**given: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="trakstore"):
            job = Job(nn.Linear(2, 1), {"train": [1]}, checkpoints=str(tmp_path), **given)
        assert job.learning_rates == {4: RATES[4], **given.get("learning_rates", {})}
        return caplog.text

    text = told()
    assert "give learning_rates={8: rate}, or train with logging_steps=1" in text
    assert f"(8: not logged; the next step's is {RATES[9]:g}; 12: not logged" in text
    assert "(12: not logged" in told(learning_rates={8: 0.5}) and "8:" not in caplog.text
    assert told(learning_rates={8: 0.5, 12: 0.25}) == ""
