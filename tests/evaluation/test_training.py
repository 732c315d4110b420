from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.evaluation.retraining import retrain
from trakstore.evaluation.training import SubsetTrainer
from trakstore.features.outputs import as_output
from trakstore.sampling import SubsetPlan

generator = torch.Generator().manual_seed(0)
images = torch.randn(48, 1, 6, 6, generator=generator)
labels = (images.mean((1, 2, 3)) > 0).long()
train, targets = TensorDataset(images, labels), TensorDataset(images[:7] + 0.1, labels[:7])
plan = SubsetPlan(48, seed=3)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def with_batch_norm() -> nn.Module:
    """A bias before it would have gradients of rounding errors, which Adam makes steps of."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 2)
    )


class Looks(nn.Module):
    """Looks at its values, as ``vmap`` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits * 2 if float(logits.detach().sum()) > 1e9 else logits


def optimisers() -> list[Any]:
    return [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
        partial(torch.optim.AdamW, lr=0.01),
    ]


def by_hand(
    make: Any, mask: Any, seed: int, optimizer: Any, epochs: int, size: int, schedule: Any = None
) -> Any:
    """What one model says that the loop which everyone writes has trained."""
    return asked(trained_by_hand(make, mask, seed, optimizer, epochs, size, schedule))


def trained_by_hand(
    make: Any, mask: Any, seed: int, optimizer: Any, epochs: int, size: int, schedule: Any = None
) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = make().train()
    steps, rng = optimizer(model.parameters()), np.random.default_rng(seed)
    rates = schedule and schedule(steps)
    for _ in range(epochs):
        for at in torch.from_numpy(rng.permutation(np.flatnonzero(mask))).split(size):
            steps.zero_grad()
            F.cross_entropy(model(images[at]), labels[at]).backward()
            steps.step()
            if rates is not None:
                rates.step()
    return model


def asked(model: nn.Module) -> Any:
    with torch.no_grad():
        logits = model.eval()(images[:7] + 0.1)
    own = logits.gather(1, labels[:7, None])[:, 0]
    return (own - (logits.sum(1) - own)).numpy(), logits.argmax(1).numpy()


@pytest.mark.parametrize("make", [plain, with_batch_norm, Looks])
@pytest.mark.parametrize("optimizer", optimisers(), ids=["sgd", "adamw"])
def test_each_is_what_it_would_be_alone(make: Any, optimizer: Any, caplog: Any) -> None:
    trainer = SubsetTrainer(make, train, targets, epochs=4, batch_size=10, optimizer=optimizer)
    masks, seeds = plan.masks(0, 5), plan.seeds(0, 5)
    masks[1, np.flatnonzero(masks[1])[:3]] = False  # one of another size
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        found = trainer(masks, seeds)
    assert found.output.dtype == np.float32
    assert found.predicted is not None
    assert ("one after the other" in caplog.text) == (make is Looks)
    for i in range(5):
        output, predicted = by_hand(make, masks[i], int(seeds[i]), optimizer, 4, 10)
        np.testing.assert_allclose(found.output[i], output, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(found.predicted[i], predicted)
    assert np.ptp(found.output, axis=0).min() > 0.01  # they are different models


def test_a_schedule_steps_with_each_batch() -> None:
    def falling(optimizer: Any, steps: int = 6) -> Any:
        assert steps == 2 * 3  # epochs and batches of 24 rows
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    trainer = SubsetTrainer(plain, train, targets, epochs=2, batch_size=10, schedule=falling)
    masks, seeds = plan.masks(0, 2), plan.seeds(0, 2)
    found, sgd = trainer(masks, seeds), partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    for i in range(2):
        told = [by_hand(plain, masks[i], int(seeds[i]), sgd, 2, 10, s)[0] for s in (falling, None)]
        np.testing.assert_allclose(found.output[i], told[0], rtol=1e-4, atol=1e-5)
        assert np.abs(told[0] - told[1]).max() > 0.01


def test_what_a_trainer_tells_of_itself() -> None:
    def told(**other: Any) -> Any:
        given = {"epochs": 4, "optimizer": partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.99))}
        return SubsetTrainer(
            **{"make_model": plain, **given, **other}, train=train, targets=targets
        )

    first = told().to_dict()
    assert first == told().to_dict() == json.loads(json.dumps(first))
    assert first["optimizer"] == {
        "name": "AdamW", "arguments": [], "lr": 0.01, "betas": [0.9, 0.99]
    }  # fmt: skip
    others: dict[str, Any] = {
        "epochs": 5,
        "batch_size": 32,
        "output": "cross_entropy",
        "optimizer": partial(torch.optim.AdamW, lr=0.02, betas=(0.9, 0.99)),
        "schedule": partial(torch.optim.lr_scheduler.StepLR, gamma=np.float32(0.5)),
    }
    for name, value in others.items():
        changed = told(**{name: value}).to_dict()
        assert {key for key in first if first[key] != changed[key]} == {name}
        json.dumps(changed, allow_nan=False)
    assert told(make_model=with_batch_norm).to_dict()["model"] != first["model"]


def with_tanh() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2))


def rates(lr: float, steps: Any = ()) -> Any:
    return lambda weights: torch.optim.SGD(weights, lr=lr, momentum=0.1 * len(steps))


OTHERS: dict[str, Any] = {
    "make_model": (plain, with_tanh),  # of the same shapes
    "optimizer": (rates(0.1), rates(1e-6)),
    "schedule": tuple(
        partial(lambda rate, optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, 1, rate), one)
        for one in (0.5, 0.25)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_set_is_not_continued_by_other_functions(name: str) -> None:
    first, other = (
        SubsetTrainer(
            **{"make_model": plain, "epochs": 1, name: function}, train=train, targets=targets
        )
        for function in OTHERS[name]
    )
    place = f"memory://functions-{name}"
    retrain(first, place, "halves", plan, 2)
    assert retrain(first, place, "halves", plan, 3).sizes["model"] == 3
    with pytest.raises(SpecMismatchError, match=name):
        retrain(other, place, "halves", plan, 4)


@pytest.mark.parametrize("code", [None, {"python": "3.9", "make_model": "0123"}])
def test_a_set_whose_code_is_not_known_goes_on(code: Any) -> None:
    trainer = SubsetTrainer(plain, train, targets, epochs=1, optimizer=rates(0.1))

    class Older:
        """As one that was stored before functions had digests, or by another Python."""

        def __call__(self, *given: Any) -> Any:
            return trainer(*given)

        def to_dict(self) -> dict[str, Any]:
            told = {k: v for k, v in trainer.to_dict().items() if k != "code"}
            return told if code is None else {**told, "code": code}

    place = f"memory://older-{code is None}"
    retrain(Older(), place, "halves", plan, 2)
    assert retrain(trainer, place, "halves", plan, 3).sizes["model"] == 3
    slower = SubsetTrainer(plain, train, targets, epochs=2, optimizer=rates(0.1))
    with pytest.raises(SpecMismatchError, match=r"epochs: theirs has 1, this one 2; choose"):
        retrain(slower, place, "halves", plan, 4)


class Tied(nn.Module):
    """One tensor under two names, and a third: the head is the embedding's transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(36, 2, bias=False), nn.Linear(36, 2)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.embedding(x.flatten(1))) + self.head(x.flatten(1))


class Buffered(nn.Module):
    """Buffers that no state dict has: drawn for each model, and followed in training."""

    level: Tensor
    seen: Tensor
    drawn: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, 2)
        self.register_buffer("drawn", torch.randn(36), persistent=False)
        self.register_buffer("level", torch.zeros(36), persistent=False)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) * self.drawn
        if self.training:
            # Another tensor takes the name; the one that was there is not written into.
            self.level = 0.5 * self.level + 0.5 * x.detach().mean(0)
            self.seen = self.seen + 1
        logits: Tensor = self.linear(x - 5 * self.level)
        return logits


class Attribute(nn.Module):
    """A tensor that each model draws, which is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.signs = nn.Linear(36, 2), torch.randn(36).sign()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1) * self.signs)
        return logits


class Late(nn.Module):
    """A buffer and a number that come with the first batch and change with each."""

    mean: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.steps = nn.Linear(36, 2), 0
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if self.training:
            own = x.detach().mean(0)
            self.mean = own if self.mean is None else 0.5 * self.mean + 0.5 * own
            self.steps += 1
        scale = 1 + self.steps / 10
        logits: Tensor = scale * self.linear(x if self.mean is None else x - 5 * self.mean)
        return logits


def with_a_layer_twice() -> nn.Module:
    layer = nn.Linear(36, 36)
    return nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Linear(36, 2))


ALONE = {
    Attribute: "their signs is no parameter or buffer, and differs",
    Late: "is no parameter or buffer, and changes",
}


@pytest.mark.parametrize(
    "make", [Tied, Buffered, Attribute, Late, with_batch_norm, with_a_layer_twice]
)
def test_weights_and_buffers_are_those_of_a_plain_loop(make: Any, caplog: Any) -> None:
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    trainer = SubsetTrainer(make, train, targets, epochs=3, batch_size=10, optimizer=sgd)
    masks, seeds = plan.masks(0, 3), plan.seeds(0, 3)
    with caplog.at_level(logging.WARNING, logger="trakstore"):
        found, states = trainer(masks, seeds), trainer.fit(masks, seeds)
    assert ("one after the other" in caplog.text) == (make in ALONE)
    assert ALONE.get(make, "") in caplog.text
    for i in range(3):
        model = trained_by_hand(make, masks[i], int(seeds[i]), sgd, 3, 10)
        wanted = model.state_dict()
        assert states[i].keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(states[i][name], value, rtol=1e-3, atol=1e-4)
        output, predicted = asked(model)
        np.testing.assert_allclose(found.output[i], output, rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(found.predicted[i], predicted)  # type: ignore[index]
        other = make()
        if make is not Late:
            other.load_state_dict(states[i])  # as a job does
    if make is Tied:
        assert torch.equal(states[0]["head.weight"], states[0]["embedding.weight"])
        assert other.head.weight is other.embedding.weight


def with_one_after_the_other() -> nn.Module:
    return nn.Sequential(Buffered(), nn.Linear(2, 36), nn.BatchNorm1d(36), Looks())


@pytest.mark.parametrize("make", [with_batch_norm, with_a_layer_twice, with_one_after_the_other])
def test_one_module_for_all_models_begins_alike_each_time(make: Any) -> None:
    """As a model that was trained before and is trained on: it is as it was given afterwards."""
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = SubsetTrainer(lambda: model, train, targets, epochs=2, batch_size=10)
    masks = plan.masks(0, 3)
    first, again = (trainer(masks, np.arange(3)) for _ in range(2))
    np.testing.assert_array_equal(first.output, again.output)
    assert np.ptp(first.output, axis=0).min() > 0.01
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    states = trainer.fit(masks, np.arange(3))
    alone = [trainer.fit(masks[i : i + 1], np.arange(i, i + 1))[0] for i in range(3)]
    for one, own in zip(states, alone, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(value, own[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("which", ["target", "train row"])
def test_what_has_no_output_is_refused_before_training(which: str) -> None:
    """A label of a third class, which the model does not know."""
    steps = []

    class Counted(torch.optim.SGD):
        def step(self, *given: Any) -> Any:
            steps.append(1)
            return super().step(*given)

    wrong = labels.clone()
    wrong[5] = 2
    data = [TensorDataset(images, wrong), targets]
    if which == "target":
        data = [train, TensorDataset(images[:7], wrong[:7])]
    trainer = SubsetTrainer(plain, *data, optimizer=partial(Counted, lr=0.1))
    with pytest.raises(TrakStoreError, match=f"{which} 5 has no margin before anything is trained"):
        trainer(plan.masks(0, 2), np.arange(2))
    assert not steps
    assert trainer.count_targets() == 7
    if which == "train row":  # a row that is in no subset, as those that are masked, does no harm
        found = trainer(SubsetPlan(48, without=[5]).masks(0, 2), np.arange(2))
        assert np.isfinite(found.output).all()


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    off = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
    config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, **off)
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


SMALL = {
    "vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    model: nn.Module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    return model


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    off = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    config = transformers.BertConfig(**SMALL, **off, num_labels=3)
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


@pytest.mark.parametrize("make", [gpt2, llama, bert])
def test_models_of_transformers(make: Any) -> None:
    """Tied heads, rotary frequencies and position ids: none of which a state dict need have."""
    ids = torch.randint(1, 20, (24, 7), generator=torch.Generator().manual_seed(1))
    samples = [{"input_ids": row} for row in ids]
    if make is bert:
        samples = [{**one, "labels": torch.tensor(i % 3)} for i, one in enumerate(samples)]
    output = "margin" if make is bert else "causal_lm"
    trainer = SubsetTrainer(make, samples, samples[:5], output=output, epochs=2, batch_size=5)
    masks, seeds = SubsetPlan(24).masks(0, 2), np.arange(2)
    found, states = trainer(masks, seeds), trainer.fit(masks, seeds)
    collate = torch.utils.data.default_collate
    for i in range(2):
        torch.manual_seed(i)
        model = make().train()
        steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        rng, rows = np.random.default_rng(i), np.flatnonzero(masks[i])
        for _ in range(2):
            for at in torch.from_numpy(rng.permutation(rows)).split(5):
                batch = collate([samples[j] for j in at])
                steps.zero_grad()
                as_output(output)(model, batch).loss.mean().backward()
                steps.step()
        wanted = model.state_dict()
        assert states[i].keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(states[i][name], value, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            values = as_output(output)(model.eval(), collate(samples[:5])).output
        np.testing.assert_allclose(found.output[i], values, rtol=1e-4, atol=1e-4)
        make().load_state_dict(states[i])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    SubsetTrainer(plain, train, targets, epochs=1)(plan.masks(0, 2), plan.seeds(0, 2))
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("masks", [np.ones((2, 40), bool), np.zeros((2, 48), bool)])
def test_other_rows_are_refused(masks: Any) -> None:
    with pytest.raises(TrakStoreError, match="subsets of 48 train rows, none empty"):
        SubsetTrainer(plain, train, targets)(masks, np.arange(2))


def test_a_fault_of_the_model_comes_up() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        SubsetTrainer(lambda: nn.Linear(5, 2), train, targets)(plan.masks(0, 2), np.arange(2))
