"""Every output against autograd on the plain model, one sample at a time, unpadded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features import (
    CausalLM,
    Contrastive,
    CrossEntropy,
    Margin,
    MaskedLM,
    RowOutputs,
    SquaredError,
    featurize,
)
from trakstore.features.outputs import as_output

ROWS, LENGTH, WORDS = 6, 7, 19


class Items:
    """Samples as they are given."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]


def featurized(model: nn.Module, samples: list[Any], output: Any, where: Path, **more: Any) -> Any:
    featurize(
        model,
        Items(samples),
        where,
        output=output,
        projector=ts.ProjectionSpec("identity"),
        batch_size=4,
        progress=False,
        **more,
    )
    store = ts.open_store(where)
    split = store.split(0, "train")
    return {name: split.column(name).read(0, split.rows) for name in split.columns}


def flat(scalar: Tensor, model: nn.Module) -> np.ndarray[Any, Any]:
    found = torch.autograd.grad(
        scalar, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([one.reshape(-1) for one in found]).numpy()


def assert_gradients(found: dict[str, Any], model: nn.Module, scalars: list[Tensor]) -> None:
    model.eval()
    wanted = np.array([flat(scalar, model) for scalar in scalars])
    np.testing.assert_allclose(
        found["features"], wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max()
    )
    outputs = np.array([scalar.item() for scalar in scalars])
    np.testing.assert_allclose(found["output"], outputs, rtol=1e-4, atol=1e-5)


def odds(probability: Tensor) -> Tensor:
    return torch.log(probability / (1 - probability))


def test_squared_error(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    x, y = torch.randn(ROWS, 3), torch.randn(ROWS)
    found = featurized(model, list(zip(x, y, strict=True)), "squared_error", tmp_path / "s")
    assert_gradients(found, model, [model(one[None])[0, 0] for one in x])
    miss = (y - model(x)[:, 0]).detach().numpy()
    np.testing.assert_allclose(found["out_to_loss"], miss, rtol=1e-4)
    np.testing.assert_allclose(found["loss"], miss**2 / 2, rtol=1e-4)


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=16, n_embd=8, n_layer=2, n_head=2, use_cache=False
    )
    return transformers.GPT2LMHeadModel(config)


def bert(head: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
    )
    return getattr(transformers, f"BertFor{head}")(config)


def padded() -> list[dict[str, Tensor]]:
    """Sequences of several lengths, padded at the right."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for row in range(ROWS):
        ids = torch.randint(1, WORDS, (LENGTH,), generator=generator)
        mask = (torch.arange(LENGTH) < LENGTH - row % 4).long()
        samples.append({"input_ids": ids * mask, "attention_mask": mask})
    return samples


def tokens_of(model: nn.Module, sample: dict[str, Tensor]) -> Tensor:
    """log p of each next token of a sequence without its padding."""
    ids = sample["input_ids"][: int(sample["attention_mask"].sum())][None]
    return model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_causal_model_by_sequence(tmp_path: Path, reduction: Any) -> None:
    model = gpt2().eval()
    found = featurized(model, padded(), CausalLM(reduction=reduction), tmp_path / "s")
    logs = [getattr(tokens_of(model, sample), reduction)() for sample in padded()]
    assert_gradients(found, model, [odds(log.exp()) for log in logs])
    np.testing.assert_allclose(found["loss"], [-log.item() for log in logs], rtol=1e-4)
    np.testing.assert_allclose(found["out_to_loss"], 1 - np.exp(-found["loss"]), rtol=1e-4)


def test_a_causal_model_by_token(tmp_path: Path) -> None:
    model = gpt2().eval()
    found = featurized(model, padded(), CausalLM(over="tokens"), tmp_path / "s")
    margins = [odds(tokens_of(model, sample).exp()).mean() for sample in padded()]
    assert_gradients(found, model, margins)
    misses = [(1 - tokens_of(model, sample).exp()).mean().item() for sample in padded()]
    np.testing.assert_allclose(found["out_to_loss"], misses, rtol=1e-4)
    store = ts.open_store(tmp_path / "s")
    for method in (ts.tracin_scores, ts.influence_scores, ts.grad_dot_scores):
        with pytest.raises(TrakStoreError, match="does not determine the loss"):
            method(store, "train", "train")
    assert ts.trak_scores(store, "train", "train").shape == (ROWS, ROWS)


def test_a_causal_model_by_loss_is_the_models_own_loss(tmp_path: Path) -> None:
    model = gpt2().eval()
    found = featurized(model, padded(), CausalLM(over="loss"), tmp_path / "s")
    whole = []
    for sample in padded():
        ids = sample["input_ids"][: int(sample["attention_mask"].sum())][None]
        whole.append(model(input_ids=ids, labels=ids).loss)
    assert_gradients(found, model, whole)


def test_a_masked_model(tmp_path: Path) -> None:
    model = bert("MaskedLM").eval()
    samples = padded()
    for at, sample in enumerate(samples):
        sample["labels"] = torch.full((LENGTH,), -100)
        sample["labels"][[0, 1 + at % 3]] = torch.tensor([3, 5])
    found = featurized(model, samples, "masked_lm", tmp_path / "s")
    whole = [model(**{k: v[None] for k, v in one.items()}).loss for one in samples]
    assert_gradients(found, model, [odds(torch.exp(-loss)) for loss in whole])


@pytest.mark.parametrize("output", ["margin", "cross_entropy"])
def test_sequence_classification(tmp_path: Path, output: str) -> None:
    model = bert("SequenceClassification").eval()
    samples = [{**one, "labels": torch.tensor(at % 3)} for at, one in enumerate(padded())]
    found = featurized(model, samples, output, tmp_path / "s")
    whole = [model(**{k: v[None] for k, v in one.items()}).loss for one in samples]
    scalars = whole if output == "cross_entropy" else [odds(torch.exp(-loss)) for loss in whole]
    assert_gradients(found, model, scalars)
    np.testing.assert_array_equal(found["label"], [0, 1, 2, 0, 1, 2])


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.image(image), self.text(text)


@pytest.mark.parametrize("batch", [1, 4])
def test_pairs_against_a_bank(tmp_path: Path, batch: int) -> None:
    torch.manual_seed(0)
    model, bank = Towers(), (torch.randn(9, 3), torch.randn(9, 3))
    images, texts = torch.randn(ROWS, 4), torch.randn(ROWS, 5)
    samples = list(zip(images, texts, strict=True))
    featurize(
        model,
        Items(samples),
        tmp_path / "s",
        output=Contrastive(*bank, scale=5.0),
        projector=ts.ProjectionSpec("identity"),
        batch_size=batch,
        progress=False,
    )
    split = ts.open_store(tmp_path / "s").split(0, "train")
    found = {name: split.column(name).read(0, ROWS) for name in ("features", "output")}
    scalars = []
    for image, text in samples:
        i, t = F.normalize(model.image(image), dim=0), F.normalize(model.text(text), dim=0)
        others = [F.normalize(one, dim=1) for one in bank]
        to_text = F.cross_entropy(5 * torch.stack([t, *others[1]]) @ i, torch.tensor(0))
        to_image = F.cross_entropy(5 * torch.stack([i, *others[0]]) @ t, torch.tensor(0))
        scalars.append(odds(torch.exp(-(to_text + to_image) / 2)))
    assert_gradients(found, model, scalars)
    options = dict(ts.open_store(tmp_path / "s").spec.output.options)
    assert options["bank_rows"] == 9 and options["scale"] == 5.0
    other = Contrastive(bank[0], bank[1] + 1, scale=5.0).spec
    assert dict(other.options)["bank"] != options["bank"]


def absolute(model: Any, batch: Any) -> Tensor:
    x, y = batch
    return (model(x)[:, 0] - y).abs()


def three(model: Any, batch: Any) -> RowOutputs:
    found = absolute(model, batch)
    return RowOutputs(2 * found, found, torch.full_like(found, -0.5))


def wrong(model: Any, batch: Any) -> Tensor:
    return absolute(model, batch).mean()


def test_a_function_is_an_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, y = torch.randn(ROWS, 3), torch.randn(ROWS)
    samples = list(zip(x, y, strict=True))
    found = featurized(model, samples, absolute, tmp_path / "a")
    assert_gradients(found, model, [(model(one)[0] - value).abs() for one, value in samples])
    np.testing.assert_array_equal(found["out_to_loss"], -1)
    twice = featurized(model, samples, three, tmp_path / "b")
    assert_gradients(twice, model, [2 * (model(one)[0] - value).abs() for one, value in samples])
    with pytest.raises(TrakStoreError, match="gives one tensor of shape"):
        featurized(model, samples, wrong, tmp_path / "c")
    with pytest.raises(TrakStoreError, match="absolute"):
        featurized(model, samples, three, tmp_path / "a")


def test_loss_methods_agree_for_margin_and_loss_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    sides = {
        split: [(torch.randn(4), torch.tensor(at % 3)) for at in range(rows)]
        for split, rows in (("train", 12), ("test", 5))
    }
    for output in ("margin", "cross_entropy"):
        for split, samples in sides.items():
            more = {"split": split, "learning_rate": 0.1}
            model.eval()
            featurize(
                model,
                Items(samples),
                tmp_path / output,
                output=output,
                projector=ts.ProjectionSpec("sjlt", dim=32),
                progress=False,
                **more,
            )
    margin, loss = (ts.open_store(tmp_path / name) for name in ("margin", "cross_entropy"))
    questions: list[Any] = [
        ts.tracin_scores,
        ts.grad_dot_scores,
        ts.grad_cos_scores,
        lambda store: ts.influence_scores(store, hessian="loss"),
    ]
    for ask in questions:
        a, b = np.asarray(ask(margin)), np.asarray(ask(loss))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    with pytest.raises(TrakStoreError, match="use hessian='loss'"):
        ts.influence_scores(loss)


@dataclass
class Pair:
    x: Tensor
    labels: Tensor


def test_a_batch_may_be_an_object(tmp_path: Path) -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    torch.manual_seed(0)
    model = Named(3, 4)
    samples = [(torch.randn(3), torch.tensor(at % 4)) for at in range(ROWS)]

    def gather(items: list[Any]) -> Pair:
        return Pair(*(torch.stack(side) for side in zip(*items, strict=True)))

    found = featurized(model, samples, "margin", tmp_path / "a", collate=gather)
    plain = featurized(model, samples, "margin", tmp_path / "b")
    np.testing.assert_array_equal(found["features"], plain["features"])


def test_what_does_not_fit() -> None:
    model = nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.zeros(4)
    cases: list[tuple[Any, Any, str]] = [
        (SquaredError(), (x, y), "one prediction and one value"),
        (SquaredError(), x, "regression needs samples"),
        (Margin(), (x, y), "integer labels"),
        (CrossEntropy(), {"x": x}, r"or dicts with 'labels' \(or 'label'\), got one with \['x'\]"),
        (CrossEntropy(), [x], "got a list of 1: the inputs without the label"),
        (CausalLM(), {"x": x}, "'labels' or 'input_ids'"),
        (CausalLM(), (x,), "needs logits"),
        (MaskedLM(), {"input_ids": x}, "masked_lm needs dicts"),
        (Contrastive(x, x), (x,), "embeddings"),
    ]
    for output, batch, message in cases:
        with pytest.raises(TrakStoreError, match=message):
            output.check(model, batch)
    with pytest.raises(TrakStoreError, match="two tensors of one shape"):
        Contrastive(x, x[:2])
    with pytest.raises(TrakStoreError, match="scale must"):
        Contrastive(x, x, scale=0)
    with pytest.raises(TrakStoreError, match="over must be"):
        CausalLM(over="words")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="did you mean 'causal_lm'"):
        as_output("causal_ml")
    with pytest.raises(TrakStoreError, match="a function of model"):
        as_output(3)
