"""Settings of modules that no state dict has: a changed model is refused, and the same one never is."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp, seeded
from features.stopped import stopped_after
from storage.test_copied_splits import edit
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.features import Job, featurize
from trakstore.features.fingerprint import checkpoint_hash
from trakstore.features.model_settings import ModelSettings
from trakstore.features.query_rows import LoadedModels
from trakstore.spec import Settings, check_settings
from trakstore.storage.checking.verification import verify_store

ROWS = 24
OPTIONS: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=8), "progress": False}
OPTIONS |= {"batch_size": 4, "block_rows": 4}


class Model(nn.Module):
    """A model with settings of all kinds."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.norm = nn.Linear(12, 10), nn.LayerNorm(10)
        self.layers = nn.Sequential(nn.Tanh(), nn.Dropout(0.1), nn.Linear(10, 3))
        self.temperature, self.doubled, self.power = 2.0, False, 1
        self.shape: Any = (2, 5)
        self.side = "left"
        self.mask = torch.ones(12)
        self.register_buffer("window", torch.linspace(0.5, 1, 10).exp(), persistent=False)
        self.register_buffer("kept", torch.tensor([1, 1, 0]), persistent=False)
        # What differs between processes, or in the course of training.
        self.device, self.run_name, self.attn_implementation = "cpu", "first", "eager"
        self.step, self.calls, self.last_loss = 0, 0, 0.0
        self.last = torch.zeros(3)
        self.seen_values = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.lower(x * self.mask) * (2 if self.doubled else 1)
        hidden = self.norm(x * self.window) ** self.power
        self.hidden = hidden.detach()
        out: Tensor = self.layers(hidden) * self.get_buffer("kept") / self.temperature
        return out + sum(self.shape) if self.side == "left" else out


def model() -> Model:
    made = seeded(Model)
    assert isinstance(made, Model)
    return made


def settings(of: nn.Module) -> Settings:
    return ModelSettings(of).all


def change(one: Any, name: str, value: Any) -> None:
    *path, last = name.split(".")
    for step in path:
        one = getattr(one, step)
    setattr(one, last, value)


CHANGES: dict[str, tuple[str, Any, str]] = {
    "float": ("temperature", 4.0, r"Model\.temperature is 2 there, and 4 here"),
    "bool": ("doubled", True, r"Model\.doubled is False there, and True here"),
    "int": ("power", 3, r"Model\.power is 1 there, and 3 here"),
    "tuple": ("shape", (2, 6), r"Model\.shape is \(2, 5\) there, and \(2, 6\) here"),
    "text": ("side", "right", r"Model\.side is left there, and right here"),
    "tensor": (
        "mask",
        torch.ones(12).index_fill(0, torch.tensor([3]), 0),
        r"mask has other values",
    ),
    "buffer": ("window", torch.linspace(0.5, 1.001, 10).exp(), r"window has other .* 10 numbers"),
    "integers": ("kept", torch.tensor([1, 0, 1]), r"Model\.kept has other .* its 3 integers"),
    "of a layer": ("norm.eps", 0.1, r"LayerNorm\.eps is 1e-05 there, and 0\.1 here"),
    "activation": ("layers.0", nn.ReLU(), r"Sequential\.0 is Tanh there, and ReLU here"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changes_are_told(kind: str) -> None:
    name, value, told = CHANGES[kind]
    first, changed = model(), model()
    change(changed, name, value)
    assert checkpoint_hash(first) == checkpoint_hash(changed)
    assert settings(model()) == settings(first)
    where = "train was made by a model whose modules have other settings than this model: "
    with pytest.raises(SpecMismatchError, match=where + ".*" + told) as caught:
        check_settings(settings(first), settings(changed), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["float", "buffer"])
def test_a_changed_model_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name, value, told = CHANGES[kind]
    first, changed = model(), model()
    change(changed, name, value)
    with stopped_after(2, monkeypatch):
        featurize(first, Samples(ROWS), tmp_path / "s", **OPTIONS)
    with pytest.raises(SpecMismatchError, match=told) as caught:
        featurize(changed, Samples(ROWS), tmp_path / "s", **OPTIONS)
    assert "s: train at epoch 0 was made by a model whose modules" in str(caught.value)
    # So does not a test split of the changed model beside the train split of the other one.
    with pytest.raises(SpecMismatchError, match=told):
        featurize(changed, Samples(8), tmp_path / "s", split="test", **OPTIONS)
    # What was committed stays, and the model as it was goes on.
    assert featurize(first, Samples(ROWS), tmp_path / "s", **OPTIONS).rows == ROWS - 2 * 4
    featurize(first, Samples(ROWS), tmp_path / "whole", **OPTIONS)
    stored = [ts.open_store(tmp_path / one).features(0, "train").values for one in ("s", "whole")]
    np.testing.assert_array_equal(*stored)
    with pytest.raises(SpecMismatchError, match=told):
        featurize(changed, Samples(ROWS + 4), tmp_path / "s", append=True, **OPTIONS)
    assert ts.open_store(tmp_path / "s").split(0, "train").rows == ROWS
    assert verify_store(tmp_path / "s").ok


def test_another_epoch_may_have_other_settings(tmp_path: Path) -> None:
    one = model()
    featurize(one, Samples(8), tmp_path / "s", epoch=1, **OPTIONS)
    one.temperature = 1.5
    featurize(one, Samples(8), tmp_path / "s", epoch=2, **OPTIONS)
    named = [dict(ts.open_store(tmp_path / "s").split(at, "train").spec.settings) for at in (1, 2)]
    assert [one["Model.temperature"] for one in named] == ["2", "1.5"]


def test_new_samples_are_not_asked_about_by_a_changed_model(tmp_path: Path) -> None:
    featurize(model(), Samples(8), tmp_path / "s", **OPTIONS)
    store, changed = ts.open_store(tmp_path / "s"), model()
    changed.temperature = 4.0
    for one in (model(), changed):
        job = Job(one, {"train": Samples(8)}, projector=OPTIONS["projector"])
        if one is not changed:
            LoadedModels(job, store, {0: None}, memory_limit=10**8)
            continue
        with pytest.raises(SpecMismatchError, match=r"temperature is 2 there, and 4 here"):
            LoadedModels(job, store, {0: None}, memory_limit=10**8)


def test_scores_of_two_models_are_refused(tmp_path: Path) -> None:
    """As of stores whose splits were copied together, or were begun at one moment."""
    changed = model()
    changed.temperature = 4.0
    for name, one in (("a", model()), ("b", changed)):
        for split, rows in (("train", ROWS), ("test", 8)):
            featurize(one, Samples(rows), tmp_path / name, split=split, **OPTIONS)
    shutil.rmtree(tmp_path / "a/0/test")
    shutil.copytree(tmp_path / "b/0/test", tmp_path / "a/0/test")
    store = ts.open_store(tmp_path / "a")
    told = (
        r"split 'train' of epoch 0 was made by .* than that of split 'test' of epoch 0: Model\.temp"
    )
    with pytest.raises(SpecMismatchError, match=told) as caught:
        ts.trak_scores(store)
    assert "temperature is 2 there, and 4 here" in str(caught.value)
    assert str(caught.value).endswith("(--allow-other-weights) if this is meant")
    assert ts.trak_scores(store, allow_other_weights=True).shape == (8, ROWS)


def elsewhere(one: Model) -> None:
    """Change what another process has otherwise."""
    one.device, one.run_name, one.attn_implementation = "cuda:1", "second", "sdpa"
    one.step, one.calls, one.last_loss = 700, 90, 0.25
    one.last, one.seen_values = torch.rand(3), torch.rand(3)
    one.layers[1].p = 0.5
    one.train()
    # Functions that buffers are made by have other last bits on another processor.
    one.window = torch.nextafter(one.window, torch.full((10,), 9.0))


class Wrapped(nn.Module):
    """As ``torch.compile`` wraps a module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


def without_dropout(one: Model) -> None:
    one.layers = nn.Sequential(*one.layers)
    one.layers[1] = nn.Identity()


SAME: dict[str, Callable[[Model], Any]] = {
    "another process": elsewhere,
    "after passes": lambda one: one(torch.ones(5, 12)),
    "compiled in part": lambda one: setattr(one, "norm", Wrapped(one.norm)),
    "compiled activation": lambda one: one.layers.__setitem__(0, Wrapped(one.layers[0])),
    "no dropout": without_dropout,
    "whole numbers as floats": lambda one: setattr(one, "power", 1.0),
    "lists in place of tuples": lambda one: setattr(one, "shape", [2, 5]),
    "another attribute": lambda one: setattr(one, "extra", 5.0),
    "one attribute less": lambda one: delattr(one, "last"),
}


@pytest.mark.parametrize("way", SAME)
def test_the_same_model_is_not_refused(way: str) -> None:
    again = model()
    SAME[way](again)
    check_settings(settings(model()), settings(again), "the model")
    check_settings(settings(again), settings(model()), "the model")
    assert len(settings(again)) > 6


def test_the_same_model_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopped_after(2, monkeypatch):
        featurize(model(), Samples(ROWS), tmp_path / "s", **OPTIONS)
    again = model()
    elsewhere(again)
    assert featurize(again, Samples(ROWS), tmp_path / "s", **OPTIONS).rows == ROWS - 2 * 4


def test_what_a_pass_changes_is_not_stored(tmp_path: Path) -> None:
    one = model()
    one(torch.ones(2, 12))  # so that what passes leave behind is there before
    featurize(one, Samples(8), tmp_path / "s", **OPTIONS)
    stored = dict(ts.open_store(tmp_path / "s").split(0, "train").spec.settings)
    assert stored.keys() == {
        *(f"Model.{name}" for name in ("temperature", "doubled", "power", "shape", "side")),
        *(f"Model.{name}" for name in ("mask", "window", "kept")),
        *(f"LayerNorm.{name}" for name in ("eps", "elementwise_affine")),
        "Sequential.0",
    }


def test_buffers_that_passes_change_are_not_stored(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()
            self.register_buffer("turns", torch.zeros(1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("turns").add_(1)
            out: Tensor = self.inner(x)
            return out

    featurize(Counting(), Samples(8), tmp_path / "s", **OPTIONS)
    assert not [
        name
        for name, _ in ts.open_store(tmp_path / "s").split(0, "train").spec.settings
        if "turns" in name
    ]


def test_splits_of_before_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_after(2, monkeypatch):
        featurize(model(), Samples(ROWS), tmp_path / "s", **OPTIONS)
    edit(tmp_path / "s/0/train/zarr.json", lambda known: known.pop("settings"))
    document = (tmp_path / "s/0/train/zarr.json").read_bytes()
    changed = model()
    changed.temperature = 4.0
    assert featurize(changed, Samples(ROWS), tmp_path / "s", **OPTIONS).rows == ROWS - 2 * 4
    assert (tmp_path / "s/0/train/zarr.json").read_bytes() == document
    assert verify_store(tmp_path / "s").ok


def test_texts_are_the_published_ones() -> None:
    """As FORMAT.md has them, by other means."""
    one = model()
    known = dict(settings(one))
    assert known["Model.kept"].startswith("3 integers, digest ")
    assert known["Model.shape"] == "(2, 5)"
    values = one.window.double().tolist()
    steps = ((5**0.5 - 1) / 2, 2**0.5 - 1, 3**0.5 - 1)
    sums = [sum(((i + 1) * a % 1 - 0.5) * x for i, x in enumerate(values)) for a in steps]
    norm = sum(x * x for x in values) ** 0.5
    assert known["Model.window"].split()[:3] == ["10", "numbers,", "summed"]
    np.testing.assert_allclose(
        [float(one) for one in known["Model.window"].split()[3:]], [norm, *sums], rtol=1e-9
    )
    one.layers.append(nn.LayerNorm(3, eps=0.5))
    assert dict(settings(one))["LayerNorm.eps"].startswith("2 numbers, summed 0.5000000001 ")


@pytest.mark.parametrize(
    "kept", [[float("nan"), 1.0], [float("-inf"), 1.0], [1.0, float("nan")], [0.0, 1.0]]
)
def test_numbers_that_are_not_finite_count(kept: list[float]) -> None:
    one, other = model(), model()
    one.mask, other.mask = torch.tensor(kept), torch.tensor([1.0, 1.0])
    check_settings(settings(one), settings(one), "the model")
    with pytest.raises(SpecMismatchError, match=r"Model\.mask has other values"):
        check_settings(settings(one), settings(other), "the model")


SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32}
SIZES |= {"num_attention_heads": 2, "vocab_size": 50, "max_position_embeddings": 64}
PAIRED: dict[str, Any] = {**SIZES, "num_key_value_heads": 1}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_layer": 2, "n_embd": 16, "n_head": 2}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", PAIRED),
    "dynamic": ("LlamaForCausalLM", "LlamaConfig", {**PAIRED, "rope_parameters": DYNAMIC}),
    "gemma": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**PAIRED, "head_dim": 8}),
    "bert": ("BertForSequenceClassification", "BertConfig", SIZES),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**PAIRED, "num_local_experts": 2}),
}


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_models_of_transformers_are_the_same_however_they_are_loaded(
    tmp_path: Path, kind: str
) -> None:
    transformers = pytest.importorskip("transformers")
    names = LANGUAGE_MODELS[kind]
    config = getattr(transformers, names[1])(**names[2], bos_token_id=0, eos_token_id=0)
    config.vocab_size = 50
    make = getattr(transformers, names[0])
    trained = make(config)
    fresh = settings(trained)
    # Long texts were seen, and some that were longer than the model was made for.
    trained.train()
    trained(torch.randint(0, 50, (1, 100 if kind in ("llama", "dynamic") else 20)))
    trained.save_pretrained(tmp_path / "m")
    loaded = [
        make.from_pretrained(tmp_path / "m"),
        make.from_pretrained(tmp_path / "m", attn_implementation="eager"),
        make(type(config).from_pretrained(tmp_path / "m")),
        make.from_pretrained(tmp_path / "m", dtype=torch.float32),
        copy.deepcopy(trained),
    ]
    with torch.device("meta"):
        bare = make(config)
    for module in loaded[2].modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    loaded[3].config.use_cache = False
    loaded[3].config.name_or_path = loaded[3].name_or_path = "elsewhere"
    for one in (trained, *loaded):
        assert settings(one) == fresh
    assert set(dict(settings(bare))) <= set(dict(fresh))


def test_settings_of_models_of_transformers_count() -> None:
    transformers = pytest.importorskip("transformers")

    def llama(**options: Any) -> nn.Module:
        made: nn.Module = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**{**PAIRED, **options})
        )
        return made

    other = llama()
    other.model.rotary_emb.inv_freq.mul_(1.01)  # type: ignore[operator, union-attr]
    for changed, told in (
        (llama(rms_norm_eps=1e-3), r"LlamaConfig\.rms_norm_eps .*; LlamaRMSNorm\.variance_epsilon"),
        (llama(rope_parameters={**DYNAMIC, "rope_type": "linear"}), "LlamaRotaryEmbedding"),
        (other, r"inv_freq has other values among its 4 numbers"),
    ):
        with pytest.raises(SpecMismatchError, match=told):
            check_settings(settings(llama()), settings(changed), "the model")


def test_adapters_are_the_same_when_they_are_loaded(tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")

    def base() -> Any:
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**PAIRED))

    def adapted(alpha: int = 8) -> Any:
        return peft.get_peft_model(
            base(), peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"])
        )

    made = adapted()
    made.save_pretrained(tmp_path / "a")
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "a", is_trainable=True)
    assert settings(again) == settings(made)
    with pytest.raises(SpecMismatchError, match=r"scaling\.default is 4 there, and 8 here"):
        check_settings(settings(made), settings(adapted(16)), "the model")
    merged = adapted()
    merged.merge_adapter()
    check_settings(settings(made), settings(merged), "the model")
    check_settings(settings(made), settings(made.merge_and_unload()), "the model")
