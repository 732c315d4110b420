"""Sharded models of one rank, which go through what several ranks do, and models that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from features.sharding.language_models import Gpt, Llama, Texts, made
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import Job, featurize
from trakstore.features.featurize import _new_scale, _prepared_by_all
from trakstore.features.fingerprint import checkpoint_hash
from trakstore.features.projectors import SJLT, Outer
from trakstore.features.sharding import Sharding, shard_blocks, sharding_of, whole_tensor
from trakstore.features.sharding.lockstep import Step
from trakstore.features.worker import Worker
from trakstore.progress import StepLine

OPTIONS: dict[str, Any] = {
    "output": "causal_lm",
    "projector": ts.ProjectionSpec("sjlt", dim=64),
    "batch_size": 3,
    "block_rows": 4,
    "progress": False,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module"),
    pytest.mark.usefixtures("one_rank"),
]


def features(model: nn.Module, store: Path, **more: Any) -> np.ndarray[Any, Any]:
    featurize(model, Texts(10), store, **OPTIONS, **more)
    split = ts.open_store(store).split(0, "train")
    rows: np.ndarray[Any, Any] = split.column("features").read(0, split.rows)
    return rows


class Mixing(nn.Module):
    """Block with a parameter in a function that no layer is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16))
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.linear(x), self.weight)


class Mixed(Llama):
    def __init__(self) -> None:
        super().__init__(layers=1)
        self.layers.append(Mixing())


@pytest.mark.parametrize("kind", [Llama, Gpt, Mixed])
def test_a_model_that_fsdp_shards_has_the_same_features(
    tmp_path: Path, kind: type[nn.Module]
) -> None:
    expected = features(made(kind), tmp_path / "whole.zarr")
    model = made(kind)
    names = [name for name, _ in model.named_parameters()]
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    got = features(model, tmp_path / "sharded.zarr")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    # The model is given back as it was: sharded, and with no gradient or hook of ours.
    assert [name for name, _ in model.named_parameters()] == names
    for module in model.modules():
        assert len(module._forward_pre_hooks) == len(module._forward_hooks)
        assert len(module._forward_hooks) == isinstance(module, FSDPModule)
    assert all(one.grad is None and hasattr(one, "full_tensor") for one in model.parameters())


def test_a_sharded_model_has_the_hash_of_the_whole_one() -> None:
    model = made(Gpt)
    expected = checkpoint_hash(model)
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    assert checkpoint_hash(model) == expected
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert checkpoint_hash(model) != expected
    plain = torch.ones(3)
    assert whole_tensor(plain) is plain


@pytest.mark.parametrize(
    "more", [{"scale": "samples"}, {"memory_limit": "50MB"}, {"activations": ["norm"]}], ids=str
)
def test_a_sharded_model_has_what_a_whole_one_has(tmp_path: Path, more: dict[str, Any]) -> None:
    expected = features(made(Llama), tmp_path / "whole.zarr", **more)
    model = made(Llama)
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    got = features(model, tmp_path / "sharded.zarr", **more)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    splits = [
        ts.open_store(tmp_path / name).split(0, "train") for name in ("whole.zarr", "sharded.zarr")
    ]
    assert splits[0].columns == splits[1].columns


class Alike(Gpt):
    """Blocks that share their first layers."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.up = self.blocks[0].up


class Wide(nn.Linear):
    """A layer in float32 within a model in bfloat16, as PEFT's adapters are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


def with_wide_layers() -> nn.Module:
    model = made(Llama).bfloat16()
    torch.manual_seed(1)
    for block in model.layers:  # type: ignore[union-attr]
        block.up = Wide(16, 32)
    model.head = Wide(16, 40, bias=False)
    return model


@pytest.mark.parametrize("make", [lambda: made(Alike), with_wide_layers], ids=["shared", "dtypes"])
def test_blocks_that_cannot_be_gathered_by_themselves_are_sharded_otherwise(
    tmp_path: Path, make: Any
) -> None:
    expected = features(make(), tmp_path / "whole.zarr")
    model = make()
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    got = features(model, tmp_path / "sharded.zarr")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_module_with_parameters_of_several_dtypes_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    with pytest.raises(TrakStoreError, match=r"a Linear is in a module with .*shard=function"):
        shard_blocks(model, init_device_mesh("cpu", (1,)))
    lists = nn.Sequential(nn.Linear(2, 2), nn.ParameterList([torch.zeros(2).bfloat16()]))
    with pytest.raises(TrakStoreError, match="a ParameterList is in a module"):
        shard_blocks(lists, init_device_mesh("cpu", (1,)))


class Choosing(nn.Module):
    """Mixture of experts: the first word of a text says which one it goes to."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.experts = nn.ModuleList(nn.Linear(16, 40) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        logits: Tensor = self.experts[int(input_ids[0, 0]) % 2](x)
        return logits


def test_modules_that_are_called_as_samples_want_it_are_refused(
    tmp_path: Path,
) -> None:
    texts = Texts(10)
    assert len({int(one) % 2 for one in texts.ids[:, 0]}) == 2
    model = made(Choosing)
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    with pytest.raises(TrakStoreError, match=r"'experts.1' is called in an order that depends"):
        features(model, tmp_path / "s.zarr")


def test_models_that_cannot_be_served_are_told_what_to_do() -> None:
    mesh = init_device_mesh("cpu", (1,))

    class FullyShardedDataParallel(nn.Linear):
        pass

    with pytest.raises(
        TrakStoreError, match=r"head is wrapped by FSDP's first version.*fully_shard"
    ):
        sharding_of(nn.ModuleDict({"head": FullyShardedDataParallel(2, 2)}))
    low = nn.Linear(2, 2)
    fully_shard(low, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(TrakStoreError, match=r"gathers weight in torch.bfloat16.*MixedPrecision"):
        sharding_of(low)
    words = nn.Embedding(4, 2, max_norm=1.0)
    fully_shard(words, mesh=mesh)
    with pytest.raises(TrakStoreError, match="max_norm"):
        sharding_of(words)


def divided(module: nn.Module, mesh: Any, placements: list[Any]) -> nn.Module:
    for name, one in list(module._parameters.items()):
        if one is not None:
            module._parameters[name] = nn.Parameter(distribute_tensor(one, mesh, placements))
    return module


def test_experts_on_ranks_of_their_own_are_refused() -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("experts", "tensor"))
    model = nn.Sequential(
        divided(nn.Linear(2, 2), mesh["tensor"], [Replicate()]),
        divided(nn.Linear(2, 2), mesh, [Shard(0), Shard(0)]),
    )
    with pytest.raises(TrakStoreError, match=r"the parameter 1.weight .* experts on ranks"):
        sharding_of(model)


def test_activations_of_divided_layers_are_refused(tmp_path: Path) -> None:
    model = made(Llama)
    divided(model.head, init_device_mesh("cpu", (1,)), [Replicate()])  # type: ignore[arg-type]
    with pytest.raises(TrakStoreError, match="activations= of a model whose layers are divided"):
        features(model, tmp_path / "s.zarr", activations=["norm"])


class Indivisible(Llama):
    """Model that a rank cannot compute with its part of the heads."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return super().forward(input_ids).unflatten(-1, (-1, 7))


@pytest.mark.parametrize("sharded", [True, False])
def test_layers_that_cannot_be_divided_are_explained(tmp_path: Path, sharded: bool) -> None:
    model = made(Indivisible)
    if sharded:
        shard_blocks(model, init_device_mesh("cpu", (1,)))
    with pytest.raises(TrakStoreError, match=r"don't multiply up to .* trained on") as caught:
        features(model, tmp_path / "s.zarr")
    assert ("heads and widths must be multiples of their number" in str(caught.value)) == sharded


def test_a_pass_that_ends_for_want_of_memory_is_made_with_fewer_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = features(made(Llama), tmp_path / "whole.zarr")
    model = made(Llama)
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    added = SJLT.add_outer

    def add(self: SJLT, out: Tensor, outer: Outer) -> None:
        # In the middle of a backward pass, in the batches of three samples.
        if outer.batch == 3 and outer.name == "layers.1.up.weight":
            raise torch.OutOfMemoryError("out of memory")
        added(self, out, outer)

    monkeypatch.setattr(SJLT, "add_outer", add)
    got = features(model, tmp_path / "sharded.zarr")
    assert "going on with 1 samples at once" in caplog.text
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_pass_that_a_rank_does_not_know_ends_with_words() -> None:
    model = made(Gpt)
    shard_blocks(model, init_device_mesh("cpu", (1,)))
    lockstep = sharding_of(model).lockstep
    assert lockstep is not None
    with pytest.raises(TrakStoreError, match="do not go through it alike"):
        lockstep._take_part(Step.AGREEMENT)


class Told:
    """Lockstep of a rank whose first rank gives other answers than its own would be."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)

    def agreed(self, ask: Any) -> Any:
        ask()
        return self.answers.pop(0)


def test_ranks_make_a_scale_where_the_first_one_sees_no_store(tmp_path: Path) -> None:
    job = Job(made(Gpt), {"train": Texts(10)}, output="causal_lm", scale="samples")
    sharding = Sharding(lockstep=Told(True))  # type: ignore[arg-type]
    worker = Worker(0, 1, torch.device("cpu"), sharding)
    assert _new_scale(job, tmp_path / "a.zarr", "train", worker, StepLine(show=False)) is None


@pytest.mark.parametrize("again", [True, False])
def test_ranks_prepare_once_more_together_or_not_at_all(again: bool) -> None:
    tasks = [MagicMock(), MagicMock()]
    worker = Worker(0, 1, torch.device("cpu"), Sharding(lockstep=Told(again)))  # type: ignore[arg-type]
    task = _prepared_by_all(iter(tasks).__next__, worker, lambda: False)
    assert task is tasks[again]
    assert tasks[0].__exit__.called == again  # weights were given back before
