"""The page's first screen: what was asked and found, without names of people and machines."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.analysis import evolution
from trakstore.features import Job, featurize_job
from trakstore.report import write_report

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")


class Written(NamedTuple):
    text: str
    store: ts.FeatureStore
    job: Job


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Ten targets, the first one a copy of train sample 3; a folder with a user's name and a space."""
    folder = tmp_path_factory.mktemp("x") / "anna maria"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    inputs, labels = (
        torch.randn(50, 4, generator=generator),
        torch.randint(3, (50,), generator=generator),
    )
    inputs[40], labels[40] = 4 * inputs[3], labels[3]
    inputs[3] *= 4
    model = torch.nn.Linear(4, 3)
    states: dict[int | str, dict[str, torch.Tensor]] = {
        epoch: {
            name: scale * torch.randn(one.shape, generator=generator)
            for name, one in model.state_dict().items()
        }
        for epoch, scale in ((1, 0.1), (2, 0.2), (3, 0.3))
    }
    job = Job(
        model,
        {
            "train": TensorDataset(inputs[:40], labels[:40]),
            "test": TensorDataset(inputs[40:], labels[40:]),
        },
        output="margin",
        projector=ts.ProjectionSpec("identity"),
        checkpoints=states,
    )
    featurize_job(job, folder / "run.zarr")
    store = ts.open_store(folder / "run.zarr")
    path = write_report(
        store, folder / "page.html", job=job, k=4, target_ids=[f"@{at}" for at in range(10)]
    ).path
    return Written(path.read_text(), store, job)


def head(text: str) -> str:
    """The first screen, as people read it."""
    part = text.split('<section id="asked"')[1].split("</section>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", part.partition(">")[2])).split())


def test_what_was_asked(page: Written) -> None:
    assert head(page.text).startswith(
        "Which of 40 samples of train made the model answer 10 samples of test as it does?"
    )
    for fact in ("method TRAK", "epochs 1, 2, 3", "temperature 2", "damping c = 1"):
        assert fact in head(page.text)
    assert "mean over epochs of φ(t)ᵀ (K + λI)⁻¹ φ(z) · Q(z)" in head(page.text)


def test_it_names_no_folder(page: Written) -> None:
    location = str(page.store.location)
    assert "anna maria" in location
    for part in Path(location).parts[1:-1]:
        assert part not in page.text
    assert page.text.count("run.zarr") > 2 and "trakstore verify" in page.text
    # Where the numbers come from stands at the end, folded.
    end = page.text.split('<section id="store"')[1]
    for word in ("complete: all", "data sets", "last run", "samples shown by"):
        assert word in end and word not in page.text.split('<section id="store"')[0]
    assert end.index("<details") < end.index("complete: all")


def test_the_targets_that_are_wrong(page: Written) -> None:
    inputs, labels = page.job.datasets["test"].tensors
    wrong = int((page.job.load(3)(inputs).argmax(1) != labels).sum())
    assert 0 < wrong < 10
    said = f"{wrong} of the 10 targets shown are predicted as another class than theirs"
    assert said in head(page.text)


def test_what_the_model_predicts_for_suspects(page: Written) -> None:
    rows = np.argsort(-ts.self_scores(page.store).values, kind="stable")[:24]
    inputs, labels = (one[rows] for one in page.job.datasets["train"].tensors)
    classes = page.job.load(3)(inputs).argmax(1)
    part = page.text.split('aria-label="Suspects"')[1].split("</ol>")[0]
    said = re.findall(r'<div class="predicted (wrong)?">predicted (\d)</div>', part)
    wrong = (classes != labels).tolist()
    assert True in wrong and False in wrong
    assert said == [
        ("wrong" if off else "", str(one)) for one, off in zip(classes.tolist(), wrong, strict=True)
    ]
    assert f"{sum(wrong)} of the 24 train samples that score highest" in head(page.text)


def panel(page: Written, at: int) -> str:
    return page.text.split(f'id="t{at}" ')[1].split("</article>")[0]


def test_a_near_copy_is_named(page: Written) -> None:
    top = ts.top_k(ts.trak_scores(page.store), 2)
    score = top["score"].values
    alone = [at for at in range(10) if score[at, 0] >= 3 * score[at, 1]]
    assert 0 in alone and len(alone) < 10 and top["train"].values[0, 0] == 3
    shown = [
        at for at in range(10) if "dominates this list" in panel(page, at).split("Opponents")[0]
    ]
    assert shown == alone
    times = f"3 dominates this list: {score[0, 0] / score[0, 1]:.1f} times the score of the next."
    assert times in panel(page, 0)
    assert "A near copy? The cosine of their gradients at epoch 3 is 1.00" in panel(page, 0)
    assert f"{len(alone)} of 10 targets ha" in head(page.text)
    links = page.text.split('class="highlights"')[1].split("</ul>")[0]
    named = re.findall(r'href="#t(\d)-tab">(\d)</a>', links)
    assert named == [(str(at), str(at)) for at in alone[:4]]


def test_lists_of_one_entry_say_nothing_of_a_next_one(page: Written, tmp_path: Path) -> None:
    asked = {"k": 1, "target_ids": ["@0", "@1"]}
    text = write_report(page.store, tmp_path / "page.html", **asked).path.read_text()
    assert "Over epochs" in head(text)
    assert "three times the score" not in head(text)


def test_how_stable_ranks_are(page: Written) -> None:
    found = evolution(ts.trak_scores(page.store), 4)
    for at in (0, 7):
        foot = panel(page, at).split("<tfoot>")[1].split("</tfoot>")[0]
        cells = re.findall(r"<td>(.*?)</td>", foot.split("kept of the first 4", 1)[1])
        kept = [f"{4 * one:.0f}" for one in found["kept"].values[1:, at]]
        same = [f"{one:.2f}".replace("-", "−") for one in found["spearman"].values[1:, at]]
        assert cells == ["", *kept, "", *same]
    last = found.isel(epoch=-1)
    kept_of_all, correlation = (float(np.median(last[name])) for name in ("kept", "spearman"))
    said = f"From epoch 2 to 3 a target keeps {4 * kept_of_all:.3g} of its first 4 proponents"
    assert said in head(page.text) and f"rank correlation is {correlation:.2f}" in head(page.text)


def test_own_output_and_loss_stand_below_the_scores_of_each_epoch(page: Written) -> None:
    for at in (0, 7):
        foot = panel(page, at).split("<tfoot>")[1].split("kept of the first")[0]
        names = re.findall(r'<th scope="row">(.*?)</th>', foot)[:2]
        assert names == ["output (margin)", "loss"]
        for name, line in zip(("output", "loss"), foot.split("</tr>"), strict=False):
            stored = [page.store.split(epoch, "test").column(name)[at] for epoch in (1, 2, 3)]
            cells = [one.replace("−", "-") for one in re.findall(r"<td>(.*?)</td>", line)]
            assert cells == [f"{one:.3g}" for one in stored]
    assert "the target's own output (margin) and loss, and how far" in panel(page, 0)


def test_numbers_of_a_target_have_one_format(page: Written) -> None:
    top = [ts.top_k(ts.trak_scores(page.store), 4, order=one) for one in ("largest", "smallest")]
    for at in range(10):
        scores = [value for one in top for value in one["score"].values[at].tolist()]
        written = re.findall(r'class="value [a-z]*">([^<]*)<', panel(page, at))
        decimals = {len(one.partition(".")[2]) for one in written}
        assert len(written) == 8 and len(decimals) == 1
        # The largest has three digits; all are what they say, to half of the last one.
        numbers = [float(one.replace("−", "-")) for one in written]
        np.testing.assert_allclose(numbers, scores, atol=0.51 * 10.0 ** -decimals.pop())
        digits = max(written, key=lambda one: abs(float(one.replace("−", "-")))).strip("+−")
        assert len(digits.replace(".", "").lstrip("0")) == 3
