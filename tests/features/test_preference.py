"""Preferences and weights: the losses of DPO and of policy gradients, by their own formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import DPO, CausalLM, Margin, Weighted, featurize

WORDS, ROWS = 13, 6


class Speaker(nn.Module):
    """A causal model that keeps a running mean of what it has read."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Embedding(WORDS, 5), nn.Linear(5, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        steps = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        logits: Tensor = self.head(torch.tanh(self.token(input_ids).cumsum(1) / steps))
        return logits


def speaker(seed: int = 0) -> Speaker:
    torch.manual_seed(seed)
    return Speaker()


def pairs(length: int = 7) -> list[dict[str, Tensor]]:
    """Prompts of three tokens with two continuations; the rejected one is shorter."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(ROWS):
        row: dict[str, Tensor] = {}
        for side, width in (("chosen", length), ("rejected", length - 2)):
            ids = torch.randint(0, WORDS, (width,), generator=generator)
            row[f"{side}_input_ids"] = ids
            row[f"{side}_labels"] = ids.clone()
            row[f"{side}_labels"][:3] = -100
            row[f"ref_{side}_logps"] = torch.randn((), generator=generator) - 9
        rows.append(row)
    return rows


def log_probability(model: nn.Module, row: dict[str, Tensor], side: str) -> Tensor:
    logs = F.log_softmax(model(row[f"{side}_input_ids"][None]).double(), -1)[0, :-1]
    wanted = row[f"{side}_labels"][1:]
    return logs.gather(1, wanted.clamp(min=0)[:, None])[:, 0][wanted >= 0].sum()


def odds(model: nn.Module, row: dict[str, Tensor], beta: float) -> Tensor:
    chosen, rejected = (
        log_probability(model, row, side) - row[f"ref_{side}_logps"]
        for side in ("chosen", "rejected")
    )
    return beta * (chosen - rejected)


def gradient(scalar: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(scalar, list(model.parameters()))])


def written(model: nn.Module, rows: Any, path: Path, output: Any) -> Any:
    projector = ts.ProjectionSpec("identity")
    featurize(model, rows, path, output=output, projector=projector, batch_size=4, progress=False)
    return ts.open_store(path).split(0, "train")


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_dpo_is_the_log_odds_of_the_preference(beta: float, tmp_path: Path) -> None:
    model, rows = speaker(), pairs()
    split = written(model, rows, tmp_path / "s.zarr", DPO(beta))
    for i, row in enumerate(rows):
        z = odds(model, row, beta)
        expected = gradient(z, model)
        got = torch.from_numpy(split.column("features").read(i, i + 1)[0])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        for name, value in (
            ("output", z),
            ("loss", -F.logsigmoid(z)),
            ("out_to_loss", (-z).sigmoid()),
        ):
            assert split.column(name).read(i, i + 1)[0] == pytest.approx(value.item(), rel=1e-5), (
                name
            )
    assert ts.open_store(tmp_path / "s.zarr").spec.output.options == (("beta", beta),)


def test_advantages_scale_the_loss_and_not_the_feature(tmp_path: Path) -> None:
    model, advantages = speaker(), torch.linspace(-1, 2, ROWS)
    plain = [
        {"input_ids": row["chosen_input_ids"], "labels": row["chosen_labels"]} for row in pairs()
    ]
    rows = [row | {"advantages": a} for row, a in zip(plain, advantages, strict=True)]
    base = CausalLM(over="loss")
    own = written(model, rows, tmp_path / "w.zarr", Weighted(base, "advantages"))
    bare = written(model, plain, tmp_path / "b.zarr", base)
    read = {
        name: (own.column(name).read(0, ROWS), bare.column(name).read(0, ROWS))
        for name in own.columns
    }
    torch.testing.assert_close(*map(torch.from_numpy, read["features"]))
    for name in ("loss", "out_to_loss"):
        weighted, unweighted = map(torch.from_numpy, read[name])
        torch.testing.assert_close(weighted, advantages * unweighted)
    mean = torch.stack([-log_probability(model, row, "chosen") / 4 for row in pairs()]).detach()
    torch.testing.assert_close(torch.from_numpy(read["loss"][0]).double(), advantages * mean)
    options = dict(ts.open_store(tmp_path / "w.zarr").spec.output.options)
    assert options["output"] == "causal_lm" and options["key"] == "advantages"


def test_a_loss_that_is_no_function_of_its_output_stays_so_with_weights(tmp_path: Path) -> None:
    rows = [{"input_ids": r["chosen_input_ids"], "weights": torch.ones(())} for r in pairs()]
    written(speaker(), rows, tmp_path / "s.zarr", Weighted(CausalLM(over="tokens")))
    with pytest.raises(TrakStoreError, match="does not determine the loss"):
        ts.grad_dot_scores(ts.open_store(tmp_path / "s.zarr"), "train", of="loss")


def test_a_weighted_classifier_keeps_its_labels(tmp_path: Path) -> None:
    class Net(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
            return super().forward(input)

    rows = [{"input": torch.randn(3), "labels": i % 2, "weights": 0.5 * i} for i in range(4)]
    split = written(Net(3, 2), rows, tmp_path / "s.zarr", Weighted(Margin()))
    assert split.column("label").read(0, 4).tolist() == [0, 1, 0, 1]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    model, where = speaker(), tmp_path / "a.zarr"
    without = [{k: v for k, v in row.items() if k != "ref_chosen_logps"} for row in pairs()]
    faults: list[tuple[Any, Any, str]] = [
        (without, DPO(), "dpo needs dicts with .*; ref_chosen_logps is missing"),
        ([row | {"x": torch.ones(1)} for row in pairs()], DPO(), "the rows also have 'x'"),
        (
            [row | {"ref_chosen_logps": torch.ones(2)} for row in pairs()],
            DPO(),
            r"ref_chosen_logps must be one sum a sample, got shape \(2, 2\)",
        ),
        (pairs(), Weighted(CausalLM()), "weighted outputs need dicts with 'weights', got"),
        (
            [{"input_ids": torch.arange(4), "weights": torch.ones(2)}] * 3,
            Weighted(CausalLM()),
            r"'weights' must be one number a sample, got shape \(2, 2\)",
        ),
    ]
    for rows, output, message in faults:
        with pytest.raises(TrakStoreError, match=message):
            written(model, rows, where, output)
    with pytest.raises(TrakStoreError, match="beta must be a number above 0, got 0"):
        DPO(0)
    with pytest.raises(TrakStoreError, match="takes a ModelOutput, such as CausalLM"):
        Weighted("causal_lm")  # type: ignore[arg-type]
    assert not where.exists()
