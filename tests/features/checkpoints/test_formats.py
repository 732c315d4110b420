"""Weights from what other libraries wrote: the same features, to the bit, from each of them."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

import trakstore as ts
from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features.checkpoints import load_weights
from trakstore.features.featurize import featurize_job
from trakstore.features.job import Job

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

IDENTITY = ts.ProjectionSpec("identity")


def llama(seed: int, **changes: Any) -> Any:
    """A causal language model of two layers whose embedding is its head."""
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 40}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | changes)).eval()


def rows() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 40, (6, 9), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": one, "labels": one} for one in ids]


def saved_folder(model: Any, path: Path) -> Any:
    model.save_pretrained(path)
    return path


def saved_shards(model: Any, path: Path) -> Any:
    model.save_pretrained(path, max_shard_size="4KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    return path / "model.safetensors.index.json"


def saved_bin(model: Any, path: Path) -> Any:
    path.mkdir()
    torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


def saved_bin_shards(model: Any, path: Path) -> Any:
    path.mkdir()
    state = model.state_dict()
    names = list(state)
    halves = {"a.bin": names[: len(names) // 2], "b.bin": names[len(names) // 2 :]}
    for file, own in halves.items():
        torch.save({name: state[name].clone() for name in own}, path / file)
    index = {"weight_map": {name: file for file, own in halves.items() for name in own}}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return path


def saved_file(model: Any, path: Path) -> Any:
    model.save_pretrained(path)
    return path / "model.safetensors"


def saved_by_lightning(model: Any, path: Path) -> Any:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    more = {"epoch": 3, "global_step": 40, "pytorch-lightning_version": "2.5.0"}
    optimizer = torch.optim.Adam(model.parameters()).state_dict()
    state["loss.weight"] = torch.ones(2)  # of a loss that the model does not have
    torch.save({"state_dict": state, "optimizer_states": [optimizer], **more}, path)
    return path


def saved_beside_an_optimizer(model: Any, path: Path) -> Any:
    optimizer = torch.optim.Adam(model.parameters())
    states = {"net": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(states, path)
    return path


def saved_of_wrappers(model: Any, path: Path) -> Any:
    state = {f"module._orig_mod.{name}": value for name, value in model.state_dict().items()}
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as before torch 1.6
    return path


def saved_by_ranks(model: Any, path: Path) -> Any:
    optimizer = torch.optim.Adam(model.parameters())
    state = {"model": model.state_dict(), "optim": optimizer.state_dict(), "step": 3}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=path)
    return path


def saved_by_fsdp_in_a_trainer(model: Any, path: Path) -> Any:
    with pytest.warns(UserWarning, match="single process"):
        dcp.save({"model": model.state_dict()}, checkpoint_id=path / "pytorch_model_fsdp_0")
    return path


def a_function(model: Any, _path: Path) -> Any:
    state = copy.deepcopy(model.state_dict())
    return lambda: state


SAVED: list[Callable[[Any, Path], Any]] = [
    *(saved_folder, saved_shards, saved_bin, saved_bin_shards, saved_file, saved_by_lightning),
    *(saved_beside_an_optimizer, saved_of_wrappers, saved_by_ranks, saved_by_fsdp_in_a_trainer),
    a_function,
]


def features(checkpoints: Any, model: nn.Module, path: Path, **more: Any) -> ts.FeatureStore:
    job = Job(model, {"train": rows()}, "causal_lm", IDENTITY, checkpoints, **more)
    featurize_job(job, path, progress=False)
    return ts.open_store(path)


@pytest.mark.parametrize("saved", SAVED)
def test_features_of_a_checkpoint_are_those_of_its_state_dict(saved: Any, tmp_path: Path) -> None:
    trained, model = llama(1), llama(2)
    own = copy.deepcopy(model.state_dict())
    checkpoints = {1: saved(trained, tmp_path / "saved"), 2: copy.deepcopy(trained.state_dict())}
    store = features(checkpoints, model, tmp_path / "s.zarr")
    assert np.array_equal(store.features(1, "train"), store.features(2, "train"))
    assert store.split(1, "train").spec.checkpoint == store.split(2, "train").spec.checkpoint
    assert all(torch.equal(own[name], value) for name, value in model.state_dict().items())


def lora(seed: int, base: int = 0) -> Any:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["norm"])
    model = peft.get_peft_model(llama(base), config)
    torch.manual_seed(seed)
    for name, p in model.named_parameters():
        if p.requires_grad:
            nn.init.normal_(p, 1.0 if "norm" in name else 0.0, 0.1)
    return model.eval()


@pytest.mark.parametrize("what", ["folder", "file", "state dict", "whole state dict"])
def test_an_adapter_goes_into_the_models_own_and_leaves_its_base(what: str, tmp_path: Path) -> None:
    trained, model = lora(1), lora(2)
    trained.save_pretrained(tmp_path / "adapter")
    given = {
        "folder": tmp_path / "adapter",
        "file": tmp_path / "adapter/adapter_model.safetensors",
        "state dict": peft.get_peft_model_state_dict(trained),
        "whole state dict": trained.state_dict(),
    }
    store = features({1: given[what]}, model, tmp_path / "s.zarr")
    direct = features(None, trained, tmp_path / "direct.zarr")
    assert np.array_equal(store.features(1, "train"), direct.features(0, "train"))
    same = direct.split(0, "train").spec.checkpoint  # of the base and the adapter
    assert store.split(1, "train").spec.checkpoint == same
    other_base = features({1: given["folder"]}, lora(2, base=5), tmp_path / "other.zarr")
    assert other_base.split(1, "train").spec.checkpoint != same


def test_a_mixture_that_is_saved_under_other_names_is_converted(tmp_path: Path) -> None:
    config = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3}
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(transformers.MixtralForCausalLM(transformers.MixtralConfig(**config)).eval())
    models[0].save_pretrained(tmp_path / "saved")
    load_weights(tmp_path / "saved", models[1], "checkpoint 1")
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name]), name


def test_a_trainers_folder_gives_epochs_and_the_rates_that_their_steps_were_made_with(
    tmp_path: Path,
) -> None:
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        save_steps=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(llama(1), arguments, train_dataset=rows())
    rates: dict[int, float] = {}

    class Watch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **more: Any) -> None:
            rates[state.global_step + 1] = more["optimizer"].param_groups[0]["lr"]

    trainer.add_callback(Watch())
    trainer.train()
    store = features(str(tmp_path / "out"), llama(2), tmp_path / "s.zarr")
    assert store.epochs == (2, 4, 6)
    given = {step: store.split(step, "train").spec.learning_rate for step in store.epochs}
    assert (
        given == pytest.approx({step: rates[step] for step in (2, 4, 6)})
        and min(given.values()) > 0
    )
    own = features({6: tmp_path / "out/checkpoint-6"}, llama(3), tmp_path / "own.zarr")
    now = features(None, trainer.model.eval(), tmp_path / "now.zarr")
    assert np.array_equal(store.features(6, "train"), own.features(6, "train"))
    assert np.array_equal(store.features(6, "train"), now.features(0, "train"))
    chosen = Job(llama(1), {"train": rows()}, checkpoints=tmp_path / "out", learning_rates={4: 0.5})
    assert chosen.learning_rates == pytest.approx({2: rates[2], 4: 0.5, 6: rates[6]})


def network(**layers: nn.Module) -> nn.Module:
    return nn.ModuleDict(layers)


def test_names_and_shapes_that_do_not_fit_are_told_before_anything_changes(tmp_path: Path) -> None:
    model = network(a=nn.Linear(3, 2), b=nn.Linear(2, 2))
    before = copy.deepcopy(model.state_dict())
    own = {"a": nn.Linear(3, 2), "b": nn.Linear(2, 2)}
    faults: list[tuple[nn.Module, str]] = [
        (network(a=own["a"]), r"it lacks b\.weight, b\.bias"),
        (
            network(a=own["a"], b_=own["b"]),
            r"lacks b\.weight.* mean 'b_\.weight'\?; the model has no b_",
        ),
        (network(**own, c=nn.Linear(1, 1)), r"the model has no c\.\w+, c\.\w+$"),
        (network(a=own["a"], b=nn.Linear(2, 1)), r"b.\w+ is \(2,.*\) in the model and \(1,"),
        (nn.Sequential(own["a"]), r"it has 0\.\w+, 0\.\w+, and the model wants a\.weight, a\.bias"),
    ]
    for other, message in faults:
        save_file(other.state_dict(), tmp_path / "w.safetensors")
        for given in (other.state_dict(), tmp_path / "w.safetensors"):
            with pytest.raises(TrakStoreError, match=rf"not of this model: .*{message}"):
                load_weights(given, model, "checkpoint 1")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    with pytest.raises(
        TrakStoreError, match=r"1\['now'\] and checkpoint 1\['mean'\] both hold weights"
    ):
        load_weights(
            {"now": one.state_dict(), "mean": two.state_dict()}, nn.Linear(3, 2), "checkpoint 1"
        )


def stack(count: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(count)))


def under(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in module.state_dict().items()}


def test_weights_behind_a_prefix_are_all_the_models_and_of_one_prefix() -> None:
    model, before = stack(2), stack(2)
    model.load_state_dict(before.state_dict())
    for given, message in (
        (under("model.", stack(3)), r"the model has no 2\.weight, 2\.bias"),
        (
            under("model.", stack(2)) | {"model.0.scale": torch.ones(1)},
            r"the model has no 0\.scale",
        ),
        (under("teacher.", stack(2)) | under("student.", stack(2)), "weights of this model twice"),
        (
            under("", stack(2)) | under("mean.", stack(2)),
            "weights of this model twice",
        ),
        (
            under("module.", stack(2)) | under("", stack(2)),
            "are one name without what wrappers add",
        ),
    ):
        with pytest.raises(TrakStoreError, match=message):
            load_weights(given, model, "checkpoint 1")
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )
    trained = stack(2)
    load_weights(under("model.", trained) | under("loss.", nn.Linear(1, 1)), model, "checkpoint 1")
    assert torch.equal(model[1].weight, trained[1].weight)  # type: ignore[index]


def test_tied_weights_that_differ_where_they_are_stored_are_refused() -> None:
    untied, tied = llama(1, tie_word_embeddings=False), llama(2)
    with pytest.raises(TrakStoreError, match="differ there, and are one tensor in the model"):
        load_weights(untied.state_dict(), tied, "checkpoint 1")


def test_states_within_others_and_functions_that_give_the_models_own_tensors(
    tmp_path: Path,
) -> None:
    model = llama(1)
    own = {"model": model.state_dict()}
    store = features({5: {"model": llama(2).state_dict()}, 10: own}, model, tmp_path / "s.zarr")
    direct = features(None, llama(1), tmp_path / "direct.zarr")
    assert np.array_equal(store.features(10, "train"), direct.features(0, "train"))
    with pytest.raises(TrakStoreError, match="gives tensors of the model itself"):
        load_weights(model.state_dict, model, "checkpoint 1")


def test_an_adapter_of_another_scale_or_behind_whole_weights_is_refused(tmp_path: Path) -> None:
    trained, model = lora(1), lora(2)
    trained.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 99}))
    with pytest.raises(TrakStoreError, match=r"has lora_alpha 99, the model's adapter 8"):
        load_weights(tmp_path / "adapter", model, "checkpoint 1")
    both = {1: trained.state_dict(), 2: peft.get_peft_model_state_dict(trained)}
    with pytest.raises(TrakStoreError, match="its base would be that of checkpoint 1"):
        features(both, model, tmp_path / "s.zarr")


def test_a_folder_of_another_architecture_is_not_built(tmp_path: Path) -> None:
    other = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=12)
    )
    other.save_pretrained(tmp_path / "other")
    for model in (llama(1), lora(1)):
        with pytest.raises(TrakStoreError, match="is not of this model"):
            load_weights(tmp_path / "other", model, "checkpoint 1")
    llama(1).save_pretrained(tmp_path / "whole")
    with pytest.raises(TrakStoreError, match="is not of this model"):
        load_weights(tmp_path / "whole", lora(1), "checkpoint 1")


def test_adapters_that_do_not_fit_are_told(tmp_path: Path) -> None:
    lora(1).save_pretrained(tmp_path / "adapter")
    with pytest.raises(TrakStoreError, match=r"not of this model: .*lora_A"):
        load_weights(tmp_path / "adapter", llama(1), "checkpoint 1")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(TrakStoreError, match=r"it lacks .*o_proj.*adapter_config.json"):
        load_weights(tmp_path / "adapter", peft.get_peft_model(llama(0), config), "checkpoint 1")
    for modules in (["q_proj"], ["q_proj", "o_proj"], ["k_proj", "o_proj", "gate_proj"]):
        other = peft.get_peft_model(llama(0), peft.LoraConfig(r=2, target_modules=modules))
        on = ", ".join(sorted(modules))
        said = f"the model's adapter is on {on}, the checkpoint's on q_proj, v_proj; make the model"
        with pytest.raises(TrakStoreError, match=said):
            load_weights(tmp_path / "adapter", other, "checkpoint 1")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], modules_to_save=["norm"])
    for given in (peft.get_peft_model_state_dict(lora(1)), tmp_path / "adapter"):
        with pytest.raises(
            TrakStoreError, match=r"; it is an adapter of LoRA: give .*get_peft_model"
        ):
            load_weights(given, llama(0), "checkpoint 1")
    larger = peft.get_peft_model(llama(0), config)
    with pytest.raises(TrakStoreError, match=r"has r 2, the model's adapter 3"):
        load_weights(tmp_path / "adapter", larger, "checkpoint 1")
    with pytest.raises(TrakStoreError, match=r"not of the model's adapter: .*size mismatch"):
        load_weights(peft.get_peft_model_state_dict(lora(1)), larger, "checkpoint 1")
    model = lora(1)
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(TrakStoreError, match=r"2 active adapters .* model.set_adapter"):
        load_weights(tmp_path / "adapter", model, "checkpoint 1")


class Evil:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_no_folder_runs_code_or_points_elsewhere(tmp_path: Path) -> None:
    touched, folder = tmp_path / "touched", tmp_path / "folder"
    folder.mkdir()
    for name, protocol in ((".metadata", 4), ("pytorch_model.bin", 2)):
        (folder / name).write_bytes(pickle.dumps(Evil(touched), protocol))
        with pytest.raises(TrakStoreError, match=r"is not a file of plain tensors .*which is code"):
            load_weights(folder, nn.Linear(2, 1), "checkpoint 1")
        (folder / name).unlink()
    texts = (b"torch.distributed.checkpoint.metadata", b"os.system")
    dotted = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(one)]) + one for one in texts) + b"\x93."
    (folder / ".metadata").write_bytes(dotted)
    with pytest.raises(TrakStoreError, match=r"os.system, which is code"):
        load_weights(folder, nn.Linear(2, 1), "checkpoint 1")
    (folder / ".metadata").unlink()
    save_file(nn.Linear(2, 1).state_dict(), tmp_path / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for text, message in {
        '{"weight_map": {"weight": "../outside.safetensors"}}': "not a file beside it",
        '{"weight_map": {"weight": "gone.safetensors"}}': "names gone.safetensors, which is not there",
        '{"weight_map": 3}': "is no index of shards",
        "{": "is no index of shards",
    }.items():
        index.write_text(text)
        with pytest.raises(TrakStoreError, match=message):
            load_weights(folder, nn.Linear(2, 1), "checkpoint 1")
    assert not touched.exists()


def test_folders_without_weights_are_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NotFoundError, match=r"holds no weights .* but notes.txt; name the file"):
        load_weights(tmp_path, nn.Linear(2, 1), "checkpoint 1")
    with pytest.raises(NotFoundError, match="holds no checkpoint-N of a Trainer"):
        Job(nn.Linear(2, 1), {}, checkpoints=tmp_path)
    with pytest.raises(
        NotFoundError, match=r"there is no folder .*gone with checkpoints of a Trainer"
    ):
        Job(nn.Linear(2, 1), {}, checkpoints=str(tmp_path / "gone"))
    (tmp_path / "checkpoint-5").mkdir()
    job = Job(nn.Linear(2, 1), {"train": []}, checkpoints=tmp_path)
    with pytest.raises(NotFoundError, match=r"checkpoint-5 holds no weights .* but nothing"):
        job.check_files([5])


LOADING = """
import sys, torch
from pathlib import Path
from torch import nn
from trakstore.features.checkpoints import load_weights

def kilobytes(what):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(what))

model = nn.Sequential(*(nn.Linear(1536, 1536) for _ in range(64)))
for p in model.parameters():
    p.data.fill_(1)
open("/proc/self/clear_refs", "w").write("5")
before = kilobytes("VmRSS")
load_weights(Path(sys.argv[1]), model, "checkpoint 1")
assert all(float(p.detach().flatten()[-1]) == i for i, p in enumerate(model.parameters()))
print((kilobytes("VmHWM") - before) * 1024, sum(4 * p.numel() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_large_checkpoint_is_loaded_beside_little_memory(kind: str, tmp_path: Path) -> None:
    files, number = {}, 0
    for shard in range(4):  # 600 MB in all
        state = {}
        for layer in range(16 * shard, 16 * shard + 16):
            for name, shape in (("weight", (1536, 1536)), ("bias", (1536,))):
                state[f"{layer}.{name}"] = torch.full(shape, float(number))
                number += 1
        file = f"{shard}.{kind}"
        if kind == "bin":
            torch.save(state, tmp_path / file)
        else:
            save_file(state, tmp_path / file)
        files |= dict.fromkeys(state, file)
    index = (
        "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    )
    (tmp_path / index).write_text(json.dumps({"weight_map": files}))
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, size = map(int, done.stdout.split())
    assert size > 600e6 and peak < 0.15 * size, f"{peak / size:.2f} of the checkpoint's size"
