"""The page of known classes gives lines to put in place of others: with them, programs are right."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attributors.test_tracin import ASKED, Factory, expected
from features.test_last_layers import Links
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from trakstore.attributors import TracInAttributor

PAGE = Path(__file__).parents[2] / "docs/howto/classes.md"

# The cells of the notebook that compute something, the one with model_output first.
NOTEBOOK = """
def model_output(logits, label):
    bindex = torch.arange(logits.shape[0]).to(logits.device, non_blocking=False)
    logits_correct = logits[bindex, label.unsqueeze(0)]

    cloned_logits = logits.clone()
    cloned_logits[bindex, label.unsqueeze(0)] = torch.tensor(
        -float("inf"), device=logits.device, dtype=logits.dtype
    )

    margins = logits_correct - cloned_logits.logsumexp(dim=-1)
    return margins.sum()

P = torch.randn(model_size, proj_dim, device="cuda")

Phi_train = {i: [] for i in range(NUM_MODELS)}
for i, model in enumerate(models):
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    L = loss(model(x_train), y_train)
    for l in tqdm(L):
        phi = torch.autograd.grad(l, model.parameters(), retain_graph=True)
        phi = torch.cat([p.flatten() for p in phi])
        Phi_train[i].append((P.T @ phi).clone().detach())
    Phi_train[i] = torch.stack(Phi_train[i])

Phi_target = {}
for i, model in enumerate(models):
    O = model_output(model(x_target), y_target)
    phi = torch.autograd.grad(O, model.parameters(), create_graph=True)
    phi = torch.cat([p.flatten() for p in phi])
    Phi_target[i] = (P.T @ phi).clone().detach()

H = {i: torch.zeros(proj_dim, proj_dim, device="cuda") for i in range(2)}
for i, model in enumerate(models):
    for x, y in train_loader:
        x = x.to("cuda")
        y = y.to("cuda")
        loss = torch.nn.CrossEntropyLoss(reduction="sum")
        L = loss(model(x), y)
        phi = torch.autograd.grad(L, model.parameters(), create_graph=True)
        phi = torch.cat([p.flatten() for p in phi])
        X = (P.T @ phi.reshape(-1, 1)).clone().detach()
        H[i] += X @ X.T

# we can optionally add a damping term lambda * I here
H_inv = {i: torch.linalg.inv(H[i]) for i in range(2)}

scores = torch.zeros(Phi_train[0].shape[0])
for k in Phi_train.keys():
    scores += (Phi_train[k] @ H_inv[k] @ Phi_target[k] / len(Phi_train)).cpu()
"""

EARLY_STOPPING = """
import heapq

class TracInAnalyzerWithEarlyStopping(TracInAnalyzer):
    def compute_influences_top_k_early_stop(
        self,
        test_triple,
        training_triples,
        top_k=10,
        early_stop_threshold=0.01,
        check_interval=100,
        **kwargs
    ):
        grad_test = self.compute_gradient(*test_triple, label=1.0)
        grad_test_flat = {name: g.flatten() for name, g in grad_test.items()}
        top_k_heap = []
        min_top_k_influence = float('-inf')
        n_train = len(training_triples.mapped_triples)

        for i, train_triple in enumerate(training_triples.mapped_triples):
            grad_train = self.compute_gradient(*train_triple, label=1.0)
            influence = 0.0
            for name in grad_train:
                if name in grad_test_flat:
                    grad_train_flat = grad_train[name].flatten()
                    influence += torch.dot(grad_train_flat, grad_test_flat[name]).item()

            abs_influence = abs(influence)
            if len(top_k_heap) < top_k:
                heapq.heappush(top_k_heap, (abs_influence, i, influence))
                min_top_k_influence = top_k_heap[0][0]
            elif abs_influence > min_top_k_influence:
                heapq.heapreplace(top_k_heap, (abs_influence, i, influence))
                min_top_k_influence = top_k_heap[0][0]

            if i > 0 and i % check_interval == 0:
                progress = i / n_train
                if progress > 0.3:
                    if self._should_early_stop(top_k_heap, early_stop_threshold):
                        print(f"Early stopping at {i}/{n_train} ({progress*100:.1f}%)")
                        break

        influences = sorted(top_k_heap, key=lambda x: x[0], reverse=True)
        return influences[:top_k]
"""


def hunks(section: str) -> list[tuple[str, str]]:
    """Lines that go and lines that come in their place, of the first diff in a section of the page."""
    text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    diff = re.search(r"```diff\n(.*?)```", text, re.DOTALL)
    assert diff, section
    changes = re.findall(r"(?m)((?:^-.*\n)*)((?:^\+.*\n)+)", diff[1])
    return [(re.sub("(?m)^-", "", old), re.sub(r"(?m)^\+", "", new)) for old, new in changes]


def changed(program: str, section: str) -> str:
    """The program with the page's lines; of those that go, each stands in it once."""
    for old, new in hunks(section):
        # A first line that goes with nothing in its place is put at the end.
        assert not old or program.count(old) == 1, old
        program = program.replace(old, new) if old else program + new
    return program


def by_definition(models: Any, data: Any, target: Any, projection: Tensor) -> Tensor:
    """Scores of all train samples for one target: mean t (ΦᵀΦ + λI)⁻¹ φ times mean 1 - p."""
    products, misses = [], []

    def margin(parameters: Any, model: Any, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])
        return -loss - torch.log(-torch.expm1(-loss))

    for model in models:
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        rows = [
            torch.cat([g.flatten(1) for g in found.values()], 1) @ projection
            for found in (
                vmap(grad(margin), (None, None, 0, 0))(parameters, model, *side)
                for side in (data, target)
            )
        ]
        phi, asked = (one.double() for one in rows)
        damping = phi.square().sum() / len(phi) * torch.eye(phi.shape[1])
        products.append(phi @ torch.linalg.solve(phi.T @ phi + damping, asked[0]))
        losses = F.cross_entropy(model(data[0]), data[1], reduction="none")
        misses.append(1 - (-losses).exp().detach())
    return torch.stack(products).mean(0) * torch.stack(misses).mean(0)


@pytest.mark.parametrize("cases", [60, 12])
def test_the_notebook_computes_trak_once_the_pages_lines_are_in_it(cases: int) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(cases, 6), torch.randint(0, 3, (cases,))
    target = torch.randn(1, 6), torch.randint(0, 3, (1,))
    models = [nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)) for _ in range(2)]
    names: dict[str, Any] = {
        "torch": torch,
        "tqdm": iter,
        "NUM_MODELS": 2,
        "models": models,
        "proj_dim": 16,
        "model_size": sum(p.numel() for p in models[0].parameters()),
        "train_loader": DataLoader(TensorDataset(x, y), 20),
        "x_train": x[:20],
        "y_train": y[:20],
        "x_target": target[0],
        "y_target": target[1],
    }
    program = changed(NOTEBOOK, "The minimal notebook").replace('"cuda"', '"cpu"')
    exec(program, names)  # noqa: S102 (the page's own lines)
    wanted = by_definition(models, (x, y), target, names["P"])[:20]
    torch.testing.assert_close(names["scores"].double(), wanted, rtol=1e-3, atol=1e-4)
    assert float(wanted.abs().max()) > 1e-2


def test_a_sketch_that_stops_early_runs_with_the_pages_line() -> None:
    (place,) = (new for old, new in hunks("TracInAttributor") if "_should_early_stop" in old)
    (old,) = (old for old, _ in hunks("TracInAttributor") if "_should_early_stop" in old)
    assert EARLY_STOPPING.count(old) == 1
    names: dict[str, Any] = {"torch": torch, "TracInAnalyzer": TracInAttributor}
    exec(EARLY_STOPPING.replace(old, place), names)  # noqa: S102 (the page's own lines)
    analyzer = names["TracInAnalyzerWithEarlyStopping"](Links(), device="cpu")
    triples = SimpleNamespace(mapped_triples=Factory().mapped_triples.repeat(5, 1))
    found = analyzer.compute_influences_top_k_early_stop(ASKED, triples, top_k=10)
    wanted = sorted((abs(float(one)) for one in expected(Links()) for _ in range(5)), reverse=True)
    assert [one[0] for one in found] == pytest.approx(wanted[:10], rel=1e-4)


def test_a_sketch_that_samples_has_the_method_from_the_class() -> None:
    ((_, new),) = (one for one in hunks("TracInAttributor") if "WithSampling" in one[1])
    names: dict[str, Any] = {"TracInAttributor": TracInAttributor}
    exec(new, names)  # noqa: S102 (the page's own lines)
    analyzer = names["TracInAnalyzerWithSampling"](Links(), device="cpu")
    found = analyzer.compute_influences_sampled(
        ASKED, Factory(), sample_rate=0.5, stratify_by="relation", top_k=10
    )
    wanted = expected(Links())
    for one in found:
        own = wanted[one["train_index"]]
        assert one["influence"] == pytest.approx(float(own), rel=1e-4, abs=1e-7)
