"""Scripts written for the published library run with one import changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import ConvNet, Samples, mlp, seeded
from torch import nn

import trakstore as ts
from trakstore.attributors import ModelIDException, TRAKer
from trakstore.errors import NumericsError, SpecMismatchError, TrakStoreError
from trakstore.features import featurize

N, M = 23, 6


def batches(data: Any, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(data.x[at : at + size], data.y[at : at + size]) for at in range(0, len(data), size)]


TRAIN, TEST = Samples(N), Samples(M, seed=1)
STATES = [mlp(seed).state_dict() for seed in (0, 1)]


def traker(where: Path, **more: Any) -> TRAKer:
    options = {"task": "image_classification", "device": "cpu", "proj_dim": 16, **more}
    return TRAKer(model=mlp(), train_set_size=N, save_dir=where, **options)


def documented_usage(one: TRAKer) -> np.ndarray[Any, Any]:
    """The README of that library, with several checkpoints."""
    for model_id, state in enumerate(STATES):
        one.load_checkpoint(state, model_id=model_id)
        for batch in batches(TRAIN, 8):
            one.featurize(batch=batch, num_samples=batch[0].shape[0])
    one.finalize_features()
    for model_id, state in enumerate(STATES):
        one.start_scoring_checkpoint("quickstart", state, model_id=model_id, num_targets=M)
        for batch in batches(TEST, 4):
            one.score(batch=batch, num_samples=batch[0].shape[0])
    return one.finalize_scores(exp_name="quickstart")


def direct(where: Path, **more: Any) -> ts.FeatureStore:
    for model_id in (0, 1):
        for split, data in (("train", TRAIN), ("test", TEST)):
            options = {"projector": ts.ProjectionSpec("sjlt", dim=16), "progress": False, **more}
            featurize(mlp(model_id), data, where, epoch=model_id, split=split, **options)
    return ts.open_store(where)


def test_documented_usage_gives_trak_scores(tmp_path: Path) -> None:
    scores = documented_usage(traker(tmp_path / "t"))
    wanted = np.asarray(ts.trak_scores(direct(tmp_path / "s"), temperature=None)).T
    assert scores.shape == (N, M)
    np.testing.assert_allclose(scores, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(np.load(tmp_path / "t" / "scores" / "quickstart.npy"), scores)
    store = ts.open_store(tmp_path / "t" / "store.zarr")
    assert store.epochs == (0, 1) and all(status.complete for status in store.status())


def test_the_readme_of_that_library(tmp_path: Path) -> None:
    """Its blocks, in which experiments have no names."""
    named = documented_usage(traker(tmp_path / "named"))
    one = traker(tmp_path / "t")
    for model_id, checkpoint in enumerate(STATES):
        one.load_checkpoint(checkpoint, model_id=model_id)
        for batch in batches(TRAIN, 8):
            one.featurize(batch=batch, num_samples=len(batch[0]))
    one.finalize_features()
    for model_id, checkpoint in enumerate(STATES):
        one.start_scoring_checkpoint(checkpoint, model_id=model_id, num_targets=M)
        for batch in batches(TEST, 4):
            one.score(batch=batch, num_samples=len(batch[0]))
    np.testing.assert_array_equal(one.finalize_scores(), named)
    path = tmp_path / "weights.pt"
    torch.save(STATES[0], path)
    one.start_scoring_checkpoint(str(path), model_id=0, num_targets=M)
    with pytest.raises(TrakStoreError, match="needs a checkpoint"):
        one.start_scoring_checkpoint(model_id=0, num_targets=M)


def test_dicts_with_texts(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    one, other = (
        TRAKer(Named(), "image_classification", N, tmp_path / name, device="cpu", proj_dim=16)
        for name in ("texts", "none")
    )
    texts = [f"sample {at}" for at in range(N)]
    dicts = {"text": texts, "x": TRAIN.x, "label": TRAIN.y}
    for traker, batch in ((one, dicts), (other, (TRAIN.x, TRAIN.y))):
        traker.load_checkpoint(Named().state_dict(), 0)
        traker.featurize(batch, num_samples=N)
        traker.finalize_features()
    found, own = (traker.store.features(0, "train").values for traker in (one, other))
    np.testing.assert_array_equal(found, own)


def test_indices_in_any_order_from_several_processes(tmp_path: Path) -> None:
    expected = documented_usage(traker(tmp_path / "a"))
    order = np.random.default_rng(0).permutation(N)
    workers = [traker(tmp_path / "b") for _ in range(3)]
    for model_id, state in enumerate(STATES):
        for rank, worker in enumerate(workers):
            worker.load_checkpoint(state, model_id)
            for at in range(rank * 4, N, 12):
                inds = order[at : at + 4]
                worker.featurize((TRAIN.x[inds], TRAIN.y[inds]), inds=torch.from_numpy(inds))
    traker(tmp_path / "b").finalize_features(del_grads=True)
    later = traker(tmp_path / "b")  # a second process, that scores from the folder
    for model_id, state in enumerate(STATES):
        later.start_scoring_checkpoint("quickstart", state, model_id, num_targets=M)
        for inds in ([3, 1], [0, 2, 5, 4]):
            later.score((TEST.x[inds], TEST.y[inds]), inds=np.array(inds))
    found = later.finalize_scores("quickstart")
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_an_interrupted_run_goes_on_and_does_no_row_twice(tmp_path: Path) -> None:
    one = traker(tmp_path)
    one.load_checkpoint(STATES[0], 0)
    first, second, third = batches(TRAIN, 8)
    one.featurize(first, num_samples=8)
    again = traker(tmp_path)
    again.load_checkpoint(STATES[0], 0)
    folder = tmp_path / "staging" / "0" / "train"
    again.featurize(first, num_samples=8)
    assert len(list(folder.glob("*.npz"))) == 1
    with pytest.raises(ModelIDException, match="lacks 15 of 23"):
        again.finalize_features()
    again.featurize(second, num_samples=8)
    again.featurize(third, num_samples=7)
    again.finalize_features()
    again.finalize_features()  # once more does nothing
    again.finalize_features([0])


def test_scoring_again_replaces_the_targets(tmp_path: Path) -> None:
    one = traker(tmp_path)
    before = documented_usage(one).copy()
    for model_id, state in enumerate(STATES):
        one.start_scoring_checkpoint("quickstart", state, model_id, num_targets=M)
        one.score((TRAIN.x[:M], TRAIN.y[:M]), num_samples=M)
    after = one.finalize_scores("quickstart")
    assert (np.asarray(after) != before).any()
    np.testing.assert_allclose(one.finalize_scores("quickstart"), after)
    only = one.finalize_scores("quickstart", model_ids=[1])
    assert (np.asarray(only) != np.asarray(after)).any() or np.allclose(only, after)


class OwnMargin:
    """As in that library's tutorial on model outputs: one sample, functional model."""

    @staticmethod
    def get_output(model: Any, weights: Any, buffers: Any, image: Any, label: Any) -> Any:
        logits = torch.func.functional_call(model, (weights, buffers), image.unsqueeze(0))
        index = torch.arange(logits.shape[0])
        correct = logits[index, label.unsqueeze(0)]
        rest = logits.clone()
        rest[index, label.unsqueeze(0)] = torch.tensor(-torch.inf, dtype=logits.dtype)
        return (correct - rest.logsumexp(dim=-1)).sum()

    def get_out_to_loss_grad(self, model: Any, weights: Any, buffers: Any, batch: Any) -> Any:
        images, labels = batch
        logits = torch.func.functional_call(model, (weights, buffers), images)
        return (1 - logits.softmax(-1)[torch.arange(len(labels)), labels]).unsqueeze(-1)


def test_a_custom_task_object(tmp_path: Path) -> None:
    own = documented_usage(traker(tmp_path / "own", task=OwnMargin()))
    built_in = documented_usage(traker(tmp_path / "in"))
    np.testing.assert_allclose(own, built_in, rtol=1e-3, atol=1e-4 * np.abs(built_in).max())


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kinds = nn.Embedding(11, 6), nn.Embedding(2, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, input_ids: Any, token_type_ids: Any, attention_mask: Any) -> Any:
        hidden = self.words(input_ids) + self.kinds(token_type_ids)
        return self.head((hidden * attention_mask[..., None]).sum(1).tanh())


def test_text_classification(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(11, (9, 5), generator=generator)
    batch = (ids, ids % 2, (ids > 2).long(), ids[:, 0] % 3)
    one = TRAKer(Text(), "text_classification", 9, tmp_path, device="cpu", proj_dim=8)
    one.load_checkpoint(Text().state_dict(), 0)
    one.featurize(batch, num_samples=9)
    one.finalize_features()
    one.start_scoring_checkpoint("e", Text().state_dict(), 0, num_targets=9)
    names = ("input_ids", "token_type_ids", "attention_mask", "labels")
    one.score(dict(zip(names, batch, strict=True)), num_samples=9)
    scores = one.finalize_scores("e")
    assert scores.shape == (9, 9) and (np.diag(scores) > 0).all()


def test_parameters_of_the_last_layer(tmp_path: Path) -> None:
    names = [name for name, _ in mlp().named_parameters()][-2:]
    one = traker(tmp_path, grad_wrt=names)
    assert one.num_params_for_grad == sum(
        p.numel() for name, p in mlp().named_parameters() if name in names
    )
    assert documented_usage(one).shape == (N, M)
    with pytest.raises(
        TrakStoreError, match="no parameter that requires a gradient matches 'nothing'"
    ):
        traker(tmp_path, grad_wrt=["nothing"])


def test_the_ridge_is_that_of_scaled_features(tmp_path: Path) -> None:
    found = documented_usage(traker(tmp_path / "t", lambda_reg=0.01))
    count = sum(p.numel() for p in mlp().parameters())
    store = direct(tmp_path / "s")
    wanted = np.asarray(
        ts.trak_scores(store, damping=ts.Damping(absolute=0.01 * count / 16), temperature=None)
    ).T
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
    with pytest.raises(NumericsError, match="use damping"):
        documented_usage(traker(tmp_path / "u", lambda_reg=0.0, proj_dim=64))


def test_bad_use(tmp_path: Path) -> None:
    one, batch = traker(tmp_path), batches(TRAIN, 8)[0]
    with pytest.raises(AssertionError, match="Load a checkpoint using"):
        one.featurize(batch, num_samples=8)
    with pytest.raises(AssertionError, match="start_scoring_checkpoint before"):
        one.score(batch, num_samples=8)
    one.load_checkpoint(STATES[0], 0)
    for arguments in ({}, {"inds": [1], "num_samples": 1}):
        with pytest.raises(AssertionError, match="Exactly one"):
            one.featurize(batch, **arguments)
    with pytest.raises(TrakStoreError, match="outside of the 23"):
        one.featurize(batch, inds=np.arange(20, 28))
    with pytest.raises(TrakStoreError, match="8 samples, 3 indices"):
        one.featurize(batch, num_samples=3)
    one.featurize(batch, num_samples=8)  # from the first on: a call that failed counts for nothing
    (path,) = tmp_path.glob("staging/0/train/*.npz")
    assert np.load(path)["inds"].tolist() == list(range(8))
    with pytest.raises(ModelIDException, match="other weights"):
        one.load_checkpoint(STATES[1], 0)
    with pytest.raises(ModelIDException, match="Model ID 7 not registered"):
        one.finalize_features([7])
    with pytest.raises(TrakStoreError, match="Experiment e does not exist"):
        one.finalize_scores("e")
    with pytest.raises(TrakStoreError, match="cannot name"):
        one.start_scoring_checkpoint("../e", STATES[0], 0, 3)
    one.start_scoring_checkpoint("e", STATES[0], 0, 3)
    with pytest.raises(AssertionError, match="No model IDs"):
        one.finalize_scores("e")
    with pytest.raises(ModelIDException, match="not finalized"):
        one.finalize_scores("e", model_ids=[0])
    for task, message in [
        ("clip", "Contrastive"),
        ("image", "no task 'image'"),
        (3, "output must"),
    ]:
        with pytest.raises(TrakStoreError, match=message):
            traker(tmp_path, task=task)


@pytest.mark.parametrize(
    "inds",
    [[0.0, 1.0], [True, False], ["a", "b"], [[0], [1]], torch.tensor([0.0, 1.0]), np.ones(2, bool)],
)
def test_what_is_no_number_of_a_sample_is_refused(tmp_path: Path, inds: Any) -> None:
    one = traker(tmp_path)
    one.load_checkpoint(STATES[0], 0)
    with pytest.raises(TrakStoreError, match=r"integers of shape \(batch,\), got"):
        one.featurize(TRAIN[:2], inds=inds)
    assert not list(tmp_path.glob("staging/0/train/*.npz"))


@pytest.mark.parametrize("inds", [[4, 7], (4, 7), torch.tensor([4, 7]), np.array([4, 7], object)])
def test_numbers_of_samples_of_any_kind(tmp_path: Path, inds: Any) -> None:
    one = traker(tmp_path)
    one.load_checkpoint(STATES[0], 0)
    one.featurize(TRAIN[:2], inds=inds)
    (path,) = tmp_path.glob("staging/0/train/*.npz")
    assert np.load(path)["inds"].tolist() == [4, 7]


def test_two_samples_of_one_number_are_refused(tmp_path: Path) -> None:
    one = traker(tmp_path / "t")
    one.load_checkpoint(STATES[0], 0)
    with pytest.raises(TrakStoreError, match=r"inds name sample 3 more than once, .* own number"):
        one.featurize(TRAIN[:3], inds=[3, 1, 3])
    labels = TRAIN.x[[5, 5]], torch.tensor([0, 1])  # one input under two labels
    with pytest.raises(TrakStoreError, match="sample 3 more than once"):
        one.featurize(labels, inds=[3, 3])
    # Samplers of several processes fill the last batch with samples that they gave before.
    filled = [*range(N), 0, 1]
    one.featurize((TRAIN.x[filled], TRAIN.y[filled]), inds=filled)
    one.finalize_features()
    other = traker(tmp_path / "o")
    other.load_checkpoint(STATES[0], 0)
    other.featurize(TRAIN[:], num_samples=N)
    other.finalize_features()
    np.testing.assert_allclose(
        *(each.store.features(0, "train").values for each in (one, other)), rtol=1e-4, atol=1e-6
    )


def test_fewer_targets_are_another_experiment(tmp_path: Path) -> None:
    one = traker(tmp_path)
    documented_usage(one)
    with pytest.raises(TrakStoreError, match=r"'quickstart' has features of 6 .* another exp_name"):
        one.start_scoring_checkpoint("quickstart", STATES[0], 0, num_targets=4)
    assert one.finalize_scores("quickstart").shape == (N, M)
    # Nothing was scored under a number that was wrong.
    for targets in (M, 4):
        one.start_scoring_checkpoint("fewer", STATES[0], 0, num_targets=targets)
    one.score((TEST.x[:4], TEST.y[:4]), num_samples=4)
    assert one.finalize_scores("fewer", model_ids=[0]).shape == (N, 4)
    with pytest.raises(SpecMismatchError, match="has 16 samples or more, and 9 were announced"):
        TRAKer(
            mlp(), "image_classification", 9, tmp_path, device="cpu", proj_dim=16
        ).load_checkpoint(STATES[0], 0)


@pytest.mark.parametrize("ridge", ["x", -1.0, float("nan"), True])
def test_what_is_no_ridge_is_refused(tmp_path: Path, ridge: Any) -> None:
    with pytest.raises(TrakStoreError, match="lambda_reg must be a number at least 0, got"):
        traker(tmp_path, lambda_reg=ridge)


def test_rows_of_weights_that_the_model_has_no_longer_are_refused(tmp_path: Path) -> None:
    one, batch = traker(tmp_path), batches(TRAIN, 8)[0]
    one.load_checkpoint(STATES[0], 0)
    one.start_scoring_checkpoint("e", STATES[1], 1, M)
    with pytest.raises(AssertionError, match="load this one again"):
        one.featurize(batch, num_samples=8)
    one.load_checkpoint(STATES[0], 0)
    one.featurize(batch, num_samples=8)
    one.start_scoring_checkpoint("e", STATES[0], 0, M)
    one.featurize(batch, inds=range(8, 16))  # the same weights, loaded for something else


SCRIPT = """
import torch as ch
from {module} import TRAKer
import numpy as np, sys
sys.path.insert(0, {tests!r})
from features.models import ConvNet, seeded
model = seeded(ConvNet)
generator = ch.Generator().manual_seed(0)
train = ch.randn(40, 12, generator=generator), ch.randint(3, (40,), generator=generator)
test = ch.randn(7, 12, generator=generator), ch.randint(3, (7,), generator=generator)
checkpoints = [seeded(ConvNet, seed).state_dict() for seed in (0, 1)]
from {noop} import NoOpProjector
traker = TRAKer(model=model, task="image_classification", train_set_size=40, save_dir={where!r},
                device="cpu", use_half_precision=False, proj_dim=0,
                projector=NoOpProjector(device="cpu"), lambda_reg={ridge})
for model_id, ckpt in enumerate(checkpoints):
    traker.load_checkpoint(ckpt, model_id=model_id)
    for at in range(0, 40, 8):
        traker.featurize(batch=tuple(t[at:at + 8] for t in train), num_samples=8)
traker.finalize_features()
for model_id, ckpt in enumerate(checkpoints):
    traker.start_scoring_checkpoint(exp_name="e", checkpoint=ckpt, model_id=model_id, num_targets=7)
    traker.score(batch=test, num_samples=7)
for model_id in (0, 1):
    np.save(f"{where}/{{model_id}}.npy", traker.finalize_scores(exp_name="e", model_ids=[model_id]))
"""


@pytest.mark.slow
def test_the_same_script_gives_the_peers_scores_up_to_a_factor(tmp_path: Path) -> None:
    """Identity features: per checkpoint, the peer's scores times one number."""
    pytest.importorskip("trak")
    found = {}
    for module in ("trak", "trakstore.attributors"):
        where = tmp_path / module
        where.mkdir()
        code = SCRIPT.format(
            module=module,
            noop="trak.projectors",
            tests=str(Path(__file__).parent.parent),
            where=str(where),
            ridge=1e-3,
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[module] = [np.load(where / f"{model_id}.npy") for model_id in (0, 1)]
    for theirs, ours in zip(*found.values(), strict=True):
        assert theirs.shape == ours.shape == (40, 7)
        assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.9999


DEFAULTS = """
import json, sys, tempfile
import numpy as np, torch, torch.nn.functional as F
import trak, trakstore.attributors as own
from sklearn.datasets import load_digits
digits = load_digits()
x, y = torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target).long()
order = torch.from_numpy(np.random.default_rng(0).permutation(len(y)))
x, y, n, m = x[order], y[order], 1000, 100
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(30):
    for rows in torch.randperm(n).split(64):
        optimiser.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
def run(library, **options):
    traker = library.TRAKer(model=model, task="image_classification", train_set_size=n,
                            save_dir=tempfile.mkdtemp(), device="cpu", **options)
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for at in range(0, n, 100):
        traker.featurize(batch=(x[at:at + 100], y[at:at + 100]), num_samples=100)
    traker.finalize_features()
    traker.start_scoring_checkpoint("e", model.state_dict(), 0, m)
    traker.score(batch=(x[n:n + m], y[n:n + m]), num_samples=m)
    return np.array(traker.finalize_scores("e"), dtype=np.float64).ravel(), traker
ours, traker = run(own)
features = traker.store.features(0, "train").values.astype("f8")
ridge = (features**2).sum() / n * 2048 / sum(p.numel() for p in model.parameters())
full = {"use_half_precision": False, "lambda_reg": ridge}
pairs = {
    "default": (run(trak)[0], ours),
    "default, seeds": tuple(run(trak, projector_seed=seed)[0] for seed in (0, 1)),
    "ridge": (run(trak, **full)[0], ours),
    "ridge, seeds": tuple(run(trak, projector_seed=seed, **full)[0] for seed in (0, 1)),
    "same ridge": (run(own, lambda_reg=ridge)[0], ours),
}
found = {name: np.corrcoef(*both)[0, 1] for name, both in pairs.items()}
open(sys.argv[1], "w").write(json.dumps(found))
"""


@pytest.mark.slow
def test_default_arguments_of_the_peer_give_noise_and_a_ridge_does_not(tmp_path: Path) -> None:
    """The numbers that the class tells of."""
    pytest.importorskip("trak")
    pytest.importorskip("sklearn")
    command = [sys.executable, "-c", DEFAULTS, str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert abs(found["default"]) < 0.1 and abs(found["default, seeds"]) < 0.1
    assert found["ridge"] > 0.95 and found["ridge, seeds"] > 0.95
    assert found["same ridge"] == pytest.approx(1)


def test_a_convolutional_model(tmp_path: Path) -> None:
    model = seeded(ConvNet)
    one = TRAKer(model, "image_classification", 5, tmp_path, device="cuda", proj_dim=8)
    one.load_checkpoint(model.state_dict(), 3)
    generator = torch.Generator().manual_seed(0)
    one.featurize((torch.randn(5, 12, generator=generator), torch.arange(5) % 3), num_samples=5)
    one.finalize_features()
    assert one.store.epochs == (3,)


def test_the_model_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    wanted = documented_usage(traker(tmp_path / "a"))
    model = mlp(1).train()
    one = TRAKer(model, "image_classification", N, tmp_path / "b", device="cpu", proj_dim=16)
    for model_id, state in enumerate([STATES[0], model.state_dict()]):
        one.load_checkpoint(state, model_id)
        one.featurize(TRAIN[:], num_samples=N)
    one.finalize_features()
    for model_id, state in enumerate([STATES[0], model.state_dict()]):
        one.start_scoring_checkpoint("own", state, model_id, M)
        one.score(TEST[:], num_samples=M)
    found = one.finalize_scores("own")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, STATES[1][name])


def test_targets_of_other_weights_are_refused(tmp_path: Path) -> None:
    one = traker(tmp_path / "t")
    one.load_checkpoint(STATES[0], 0)
    one.featurize(TRAIN[:], num_samples=N)
    one.finalize_features()
    one.start_scoring_checkpoint("x", STATES[1], 0, M)
    one.score(TEST[:], num_samples=M)
    with pytest.raises(SpecMismatchError, match="allow_other_weights=True"):
        one.finalize_scores("x")
    assert one.finalize_scores("x", allow_other_weights=True).shape == (N, M)


def test_two_model_ids_of_the_same_weights_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = traker(tmp_path / "t")
    for model_id, state in enumerate([STATES[0], STATES[1], STATES[0]]):
        one.load_checkpoint(state, model_id)
        one.featurize(TRAIN[:], num_samples=N)
    told = [record.getMessage().partition(" (")[0] for record in caplog.records]
    told = [one for one in told if "same weights" in one]
    assert told == ["epochs 0 and 2 have the same weights"]
