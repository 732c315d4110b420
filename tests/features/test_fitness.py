"""Models that are refused before anything is computed, and those that only seemed unfit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features.models import Samples, mlp, seeded
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import Job, featurize, featurize_job
from trakstore.features.evaluated import evaluated
from trakstore.features.fitness import need_apart
from trakstore.features.parameters import select_parameters

SPEC, IDENTITY = ts.ProjectionSpec("sjlt", dim=16), ts.ProjectionSpec("identity")
CPU = torch.device("cpu")


def features(model: nn.Module, data: Any, where: Path, **options: Any) -> np.ndarray[Any, Any]:
    """As they are stored, unprojected by default."""
    asked = {"projector": IDENTITY, "progress": False, **options}
    featurize(model, data, where / "a.zarr", **asked)
    return ts.open_store(where / "a.zarr").features(0, "train").values


def margins(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    logits = model(inputs)
    own = F.one_hot(labels, logits.shape[1]).bool()
    return logits[own] - logits.masked_fill(own, -torch.inf).logsumexp(1)


def autograd(model: nn.Module, data: list[tuple[Tensor, int]]) -> np.ndarray[Any, Any]:
    """Gradients of each sample's margin by plain autograd, as rows."""
    model.eval()
    rows = []
    for x, y in data:
        found = torch.autograd.grad(
            margins(model, x[None], torch.tensor([y])).sum(), [*model.parameters()]
        )
        rows.append(torch.cat([one.to_dense().reshape(-1) for one in found]))
    return torch.stack(rows).numpy()


def images(count: int = 6) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 6, 6, generator=generator), i % 3) for i in range(count)]


def words(count: int = 6) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 20, (4,), generator=generator), i % 3) for i in range(count)]


def without_statistics(features: type[nn.Module]) -> nn.Module:
    norm = features(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))


class Stateful(nn.Module):
    """A linear model with other tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x)
        return found


UNFIT: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "scripted": (lambda: torch.jit.script(mlp()), Samples(6), "scripted or traced"),
    "traced": (lambda: torch.jit.trace(mlp(), torch.zeros(2, 12)), Samples(6), "torch.jit"),
    "lazy": (
        lambda: nn.Sequential(nn.Linear(12, 4), nn.LazyLinear(3)),
        Samples(6),
        r"module '1' \(LazyLinear\) has no weights yet; call the model once",
    ),
    "lazy norm": (
        lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(12, 3)),
        Samples(6),
        r"'0' \(LazyBatchNorm1d\) has no weights yet",
    ),
    "rows": (
        lambda: nn.Sequential(nn.BatchNorm1d(12, track_running_stats=False), nn.Linear(12, 3)),
        Samples(6),
        r"'0' \(BatchNorm1d\) has no running statistics .* use track_running_stats=True",
    ),
    "images": (
        lambda: without_statistics(nn.BatchNorm2d),
        images(),
        r"'1' \(BatchNorm2d\) has no running statistics",
    ),
    "meta": (lambda: nn.Linear(12, 3, device="meta"), Samples(6), "meta device"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", UNFIT)
def test_models_whose_samples_have_no_gradients_of_their_own(case: str, tmp_path: Path) -> None:
    make, data, said = UNFIT[case]
    model = make()
    with pytest.raises(TrakStoreError, match=said) as caught:
        features(model, data, tmp_path, projector=SPEC)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()
    assert model.training


def test_models_that_quantise_by_the_batch_are_refused() -> None:
    kind = type("Linear", (nn.Linear,), {"__module__": "torch.ao.nn.quantized.dynamic.modules"})
    model = nn.Sequential(kind(12, 3))
    with pytest.raises(TrakStoreError, match=r"'0' .* quantises by the range"):
        need_apart(model)


def test_exported_programs_are_refused() -> None:
    class Exported(nn.Linear):
        def train(self, mode: bool = True) -> Exported:
            raise NotImplementedError("Calling eval() is not supported yet.")

    with (
        pytest.raises(TrakStoreError, match=r"eval mode .* give the nn.Module"),
        evaluated(Exported(2, 2), CPU),
    ):
        pass


@pytest.mark.parametrize("tracked", [True, False])
def test_instance_norms_are_of_one_sample(tracked: bool, tmp_path: Path) -> None:
    def make() -> nn.Module:
        norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=tracked)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.Linear(64, 3))

    model = seeded(make)
    got = features(model, images(), tmp_path)
    np.testing.assert_allclose(got, autograd(model, images()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_that_were_called_are_like_others(tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(nn.LazyLinear(5), nn.Tanh(), nn.LazyLinear(3)))
    model(torch.zeros(1, 12))
    data = [(x, int(y)) for x, y in (Samples(5)[i] for i in range(5))]
    got = features(model, data, tmp_path)
    np.testing.assert_allclose(got, autograd(model, data), rtol=1e-4, atol=1e-5)


class Stubborn(nn.Module):
    """Keeps itself in training mode, as models do that want dropout at all times."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
        )

    def train(self, mode: bool = True) -> Stubborn:  # noqa: ARG002
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def test_modules_that_keep_themselves_in_training_mode_are_evaluated(tmp_path: Path) -> None:
    model = seeded(Stubborn)
    data = [(x, int(y)) for x, y in (Samples(5)[i] for i in range(5))]
    got = features(model, data, tmp_path)
    assert all(module.training for module in model.modules())
    np.testing.assert_allclose(got, autograd(model.layers.eval(), data), rtol=1e-4, atol=1e-5)


class Merging(nn.Linear):
    """A low-rank change of a frozen weight, which is added to it in eval mode, as loralib does it."""

    def __init__(self) -> None:
        super().__init__(12, 8)
        self.weight.requires_grad_(False)
        self.left, self.right = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 12))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            change = self.left @ self.right
            self.weight.data += -change if mode else change
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        return found if self.merged else found + x @ self.right.t() @ self.left.t()


@pytest.mark.parametrize("training", [True, False])
def test_low_rank_layers_are_not_merged(training: bool, tmp_path: Path) -> None:
    model = seeded(lambda: nn.Sequential(Merging(), nn.Tanh(), nn.Linear(8, 3)))
    data = [(x, int(y)) for x, y in (Samples(5)[i] for i in range(5))]
    trained = [one for one in model.parameters() if one.requires_grad]
    expected = [
        torch.cat(
            [
                one.reshape(-1)
                for one in torch.autograd.grad(
                    margins(model, x[None], torch.tensor([y])).sum(), trained
                )
            ]
        ).numpy()
        for x, y in data
    ]
    model.train(training)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    got = features(model, data, tmp_path)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert model[0].merged is not training
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


class Remembering(nn.Module):
    """A bias that is made once in an evaluation, and forgotten in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.table = nn.Linear(12, 3), nn.Parameter(torch.randn(1), False)
        self.made: Tensor | None = None
        self.by_name: dict[str, Tensor] = {}
        self.listed: list[Tensor] = []

    def train(self, mode: bool = True) -> Remembering:
        self.made = None if mode else self.made
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            self.made = self.table * 1
        found: Tensor = self.layers(x * self.made)
        return found


def test_what_was_made_of_other_weights_is_forgotten(tmp_path: Path) -> None:
    model = seeded(Remembering).eval()
    data = [(x, int(y)) for x, y in (Samples(5)[i] for i in range(5))]
    model(data[0][0][None])
    model.table.data.mul_(3)
    got = features(model, data, tmp_path)
    expected = autograd(model.train().layers, [(x * model.table, y) for x, y in data])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bag", [False, True])
def test_embeddings_with_sparse_gradients(bag: bool, tmp_path: Path) -> None:
    def make() -> nn.Module:
        if bag:
            return nn.Sequential(nn.EmbeddingBag(20, 6, sparse=True), nn.Linear(6, 3))
        return nn.Sequential(nn.Embedding(20, 6, sparse=True), nn.Flatten(), nn.Linear(24, 3))

    model = seeded(make)
    got = features(model, words(), tmp_path)
    np.testing.assert_allclose(got, autograd(model, words()), rtol=1e-4, atol=1e-5)
    assert model[0].sparse  # type: ignore[index]


class Lookup(nn.Module):
    """An embedding without a module, whose gradient is sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.ones(20, 6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(F.embedding(x, self.table, sparse=True).mean(1))
        return found


def test_a_sparse_gradient_of_a_function(tmp_path: Path) -> None:
    model, data = seeded(Lookup), words()
    np.testing.assert_allclose(
        features(model, data, tmp_path), autograd(model, data), rtol=1e-4, atol=1e-5
    )


def test_quantised_and_sparse_tensors_beside_the_parameters(tmp_path: Path) -> None:
    data = [(x, int(y)) for x, y in (Samples(5)[i] for i in range(5))]
    tensors = {"mask": torch.eye(3).to_sparse(), "weights": torch.ones(3, dtype=torch.int8)}
    model = seeded(lambda: Stateful(**tensors))
    got = features(model, data, tmp_path)
    np.testing.assert_allclose(got, autograd(model, data), rtol=1e-4, atol=1e-5)


class Fussy(nn.Linear):
    """Raises errors of its own, as models of language do."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        raise {"value": ValueError, "key": KeyError, "assert": AssertionError}[self.kind](
            "Cannot handle batch sizes > 1\nif no padding token is defined."
        )


@pytest.mark.parametrize(("kind", "name"), [("value", "ValueError"), ("assert", "AssertionError")])
def test_errors_of_the_model_are_one_line(kind: str, name: str, tmp_path: Path) -> None:
    model = Fussy(12, 3)
    model.kind = kind
    with pytest.raises(TrakStoreError) as caught:
        features(model, Samples(5), tmp_path)
    said = rf"does not take the first samples \(.*\): {name}: Cannot handle batch sizes > 1; give"
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()


def test_complex_parameters_are_refused_where_they_are_selected(tmp_path: Path) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(12, 4, dtype=torch.complex64))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head((x.to(self.w.dtype) @ self.w).abs())
            return found

    model, data = seeded(Spectral), [(x, int(y)) for x, y in (Samples(5)[i] for i in range(5))]
    for projector in (SPEC, IDENTITY):
        with pytest.raises(
            TrakStoreError, match=r"parameter w is complex64, .* torch.view_as_complex"
        ):
            features(model, data, tmp_path, projector=projector)
    got = features(model, data, tmp_path, parameters="head.*")
    want = autograd(model, data)  # complex, w first
    np.testing.assert_allclose(got, want[:, 48:].real, rtol=1e-4, atol=1e-5)


def test_tied_frozen_and_single_patterns(caplog: pytest.LogCaptureFixture) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
            self.head.weight = self.embed.weight
            self.norm = nn.LayerNorm(4).requires_grad_(False)

    model = Tied()
    with pytest.raises(
        TrakStoreError, match=r"head.weight is tied: it is the parameter embed.weight"
    ):
        select_parameters(model, "head.w*")
    with pytest.raises(TrakStoreError, match=r"norm.weight is frozen; the model has embed.weight"):
        select_parameters(model, "norm.*")
    with pytest.raises(TrakStoreError, match=r"parameters are shell-style patterns .* got \[3\]"):
        select_parameters(model, [3])  # type: ignore[list-item]
    assert list(select_parameters(model, "head.*")) == ["head.bias"]
    assert "leaves out head.weight, which is embed.weight under another name" in caplog.text
    caplog.clear()
    assert list(select_parameters(model, ["head.*", "embed.*"])) == ["embed.weight", "head.bias"]
    assert not caplog.records


class Keeping(nn.Module):
    """A model that keeps what it makes of a weight, as layers do that are fast in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(6))
        self.made: Tensor | None = None
        self.by_name: dict[str, Tensor] = {}
        self.listed: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.made is None:
            self.made = (2 * self.scale).detach()
            self.newer = self.made + 1
        kept = self.by_name.setdefault("scale", self.scale.detach() + 2)
        if not self.listed:
            self.listed.append(self.scale.detach() + 3)
        logits: Tensor = self.linear(
            x * self.made * self.scale * kept * self.listed[0] + self.newer
        )
        return logits


def test_what_a_model_keeps_of_its_weights_is_not_used_under_others(tmp_path: Path) -> None:
    model, data = Keeping(), [(torch.randn(6), i % 3) for i in range(8)]
    states = {1: copy.deepcopy(model.state_dict())}
    states[2] = {name: 3 * value for name, value in states[1].items()}
    identity = ts.ProjectionSpec("identity")
    both, alone = tmp_path / "both.zarr", tmp_path / "alone.zarr"
    job = Job(model, {"train": data}, checkpoints=states, projector=identity)
    featurize_job(job, both, progress=False)
    assert model.made is None and not hasattr(model, "newer")
    assert not model.by_name and not model.listed
    fresh = Keeping()
    fresh.load_state_dict(states[2])
    featurize(fresh, data, alone, projector=identity, progress=False)
    got = ts.open_store(both).features(2, "train").values
    np.testing.assert_allclose(got, ts.open_store(alone).features(0, "train").values, rtol=1e-5)


class Graphed(nn.Module):
    """A model that keeps what it makes of a weight, with its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(6))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.kept:
            self.kept.append(self.scale.exp())
        logits: Tensor = self.linear(x * self.kept[0])
        return logits


def test_what_surrounds_or_stays_in_a_model_is_named(tmp_path: Path) -> None:
    rows = [(torch.randn(6), i % 3) for i in range(4)]
    with pytest.raises(TrakStoreError, match="keeps tensors with their graph"):
        features(Graphed(), rows, tmp_path / "a.zarr")
    model = mlp()
    with pytest.raises(TrakStoreError, match="default device is 'meta'"), torch.device("meta"):
        features(model, Samples(4), tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()
