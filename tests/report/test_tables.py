"""Tables say what they were given, within the width of a terminal."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from rich.table import Table

from trakstore.evaluation.verdicts import Check
from trakstore.markup import cells
from trakstore.report.analysis_tables import change_table, evolution_table
from trakstore.report.evaluation_tables import check_lines, passed_lines, suspects_table
from trakstore.report.group_table import GroupTable
from trakstore.report.terminal_tables import completeness_table, missing_lines, top_table
from trakstore.report.units import in_powers_of_ten
from trakstore.storage.split import SplitStatus


def text(table: Table, width: int = 60) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def status(epoch: int | str, split: str, missing: tuple[tuple[int, int], ...] = ()) -> SplitStatus:
    absent = sum(stop - start for start, stop in missing)
    return SplitStatus(epoch, split, 1000, 1000 - absent, 10, 10 - len(missing), missing)


def test_epochs_that_are_alike_share_a_line() -> None:
    found = [status(epoch, "train", ((0, 10),) if epoch == 9 else ()) for epoch in range(12)]
    shown = text(completeness_table(found))
    assert "0 ... 8 (9 epochs)" in shown
    assert "990 of 1,000 (99%)" in shown
    assert "10, 11" in shown


def test_a_split_that_an_epoch_lacks() -> None:
    shown = text(completeness_table([status(0, "test"), status(1, "train")]))
    assert shown.count(" - ") == 2


def test_missing_rows_are_named_within_bounds() -> None:
    many = tuple((start, start + 1) for start in range(0, 40, 2))
    lines = missing_lines([status(epoch, "train", many) for epoch in range(30)])
    assert lines[0] == "missing: train at epoch 0: rows 0-0, 2-2, 4-4, 6-6, 8-8 and 15 more ranges"
    assert lines[-1] == "missing: rows of 27 more splits (--json has all)"
    assert missing_lines([status(0, "train")]) == []


def test_top_lists() -> None:
    dims = ("target", "rank")
    top = xr.Dataset(
        {
            "score": (dims, np.array([[0.5, -0.00123]], np.float32)),
            "train": (dims, np.array([["a", "bcd"]])),
            "position": (dims, np.array([[4, 2]])),
        },
        coords={"target_id": ("target", np.array([77]))},
        attrs={"order": "largest"},
    )
    shown = text(top_table(top))
    assert "77" in shown
    assert "bcd -0.00123" in shown
    assert "+0.500" in shown
    labelled = top.assign(label=(dims, np.array([[1, 2]])), target_label=("target", np.array([1])))
    assert "bcd (2) -0.00123" in text(top_table(labelled))


PROMPTS = np.array([f"{at}\tdef f(self):\n    return {at}" + " and so on" * 20 for at in range(2)])


def test_prompts_as_ids_leave_room_for_the_numbers() -> None:
    columns = {"change": [0.484, -0.555], "low": [-0.37, -2.22], "high": [1.39, 1.19]}
    columns |= {"p": [0.25, 0.5], "q": [0.031, 0.92]}
    found = xr.Dataset({name: ("rank", np.array(one)) for name, one in columns.items()})
    shown = text(change_table(found.assign(train=("rank", PROMPTS)), "gained"), width=80)
    assert [f"{at}\\tdef f(self):\\n    retur…and so on" in shown for at in (0, 1)] == [True, True]
    for number in ("+0.484", "-0.555", "-0.37", "+1.19", "0.25", "0.5", "0.031", "0.92"):
        assert number in shown
    scores = xr.DataArray([0.5, 0.25], dims="train", coords={"train_id": ("train", PROMPTS)})
    lines = text(suspects_table(scores, None), width=80).splitlines()
    assert [line.split()[-1] for line in lines if "def f" in line] == ["0.5", "0.25"]


@pytest.mark.parametrize("name", ["数" * 17 + "1", "a/" * 17 + "1"])
def test_ends_of_names_are_kept_over_epochs(name: str) -> None:
    numbers = ("mean", "std", "max", "spearman", "kept")
    columns = {one: ("epoch", [0.25, 0.5]) for one in numbers}
    train = (("epoch", "rank"), np.array([[name, "b\nc"]] * 2))
    found = xr.Dataset({**columns, "train": train}, {"epoch": [1, 2]}, {"order": "largest"})
    shown = text(evolution_table(found), width=80)
    assert all(cells(line) <= 80 for line in shown.splitlines())
    assert "".join(shown.split()).count(f"{name},b\\nc") == 2


def test_groups_fit_a_terminal_in_one_unit() -> None:
    means = np.diag(np.arange(1.0, 11.0)) * 0.004
    means[0, 1] = -1e-9
    lines = text(GroupTable(means, range(10), range(10)), width=80).splitlines()
    assert "mean scores, in 10⁻²" in lines[0]
    numbers = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
    assert [row[1:] for row in numbers] == [[f"{x * 100:+z.1f}" for x in row] for row in means]
    assert "-0.0" not in "".join(lines)


def test_many_groups_are_summed_up() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(40, 40))
    means[np.arange(40), np.arange(40)] = 3.0
    lines = text(GroupTable(means, range(40), range(40)), width=80).splitlines()
    assert max(map(len, lines)) <= 80 and "all 1,600 means: --csv or --json" in lines[-1]
    _, unit = in_powers_of_ten(means)
    assert unit == "1" and "mean scores, in 1" in lines[0]
    rows = [line.split(maxsplit=2) for line in lines if line.strip() and line.split()[0].isdigit()]
    assert [(int(one), own) for one, own, _ in rows] == [(at, "+3.0") for at in range(40)]
    for at, (*_, others) in enumerate(rows):
        order = [one for one in np.argsort(-means[at], kind="stable") if one != at]
        chosen = [*order[:3], *order[::-1][:3]]
        wanted = [f"{one} {means[at, one]:+.1f}" for one in chosen]
        assert others.replace(",", "").split() == " ".join(wanted).split()


def test_few_classes_of_targets_stand_in_columns() -> None:
    means = np.arange(80.0).reshape(2, 40)
    lines = text(GroupTable(means, ["a", "b"], range(40)), width=80).splitlines()
    numbers = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
    assert [row[1:] for row in numbers] == [[f"{x / 10:+z.1f}" for x in row] for row in means.T]
    assert "columns: target classes" in "".join(lines)
    twelve = np.full((12, 12), 1.23)
    shown = text(GroupTable(twelve, range(12), range(12)), width=80)
    assert shown.count("+1.2") == 144 or "own class" in shown


def test_names_with_wide_characters_and_ends_of_lines_keep_the_columns() -> None:
    dims = ("target", "rank")
    names = np.array([["数字五", "e\u0301", "two\nlines"]])
    top = xr.Dataset(
        {"train": (dims, names), "score": (dims, np.array([[0.5, 0.25, 0.125]]))},
        coords={"target_id": ("target", np.array(["目標"]))},
        attrs={"order": "largest"},
    )
    lines = text(top_table(top), width=40).splitlines()
    numbers = [line for line in lines if "+0." in line]
    ends = [cells(line.split("+0.")[0]) for line in numbers]
    assert len(numbers) == 3 and len(set(ends)) == 1 and "two\\nlines" in lines[-2]
    wide = GroupTable(np.eye(2), ["猫" * 30, "a\nb"], ["猫" * 30, "a\nb"])
    shown = text(wide, width=80)
    assert "\\n" in shown and all(cells(line) <= 80 for line in shown.splitlines())


def test_checks_that_pass_share_a_line_of_their_split() -> None:
    checks = [
        Check("kernel", "train", "pass", 12.5 * e, f"condition; rank {e} of 8, 1,300 rows", "", e)
        for e in (3, 1, 2, 4, 5, 6)
    ]
    checks.append(Check("same data", "train", "pass", 1300, "samples", "", 3))
    checks.append(Check("no frozen parameters", "model", "pass", 0, "frozen"))
    assert [str(line) for line in passed_lines(checks)] == [
        "pass  kernel (train at epochs 3 ... 6 (6 epochs)): 12.5 to 75 condition; "
        "rank 1 to 6 of 8, 1,300 rows",
        "pass  same data (train at epoch 3): 1,300 samples",
        "pass  no frozen parameters (model): 0 frozen",
    ]
    bad = Check("same data", "train", "fail", 1300, "samples", "look", 3)
    assert [str(line) for line in check_lines(bad)] == [
        "fail  same data (train at epoch 3): 1,300 samples",
        "      look",
    ]


@pytest.mark.parametrize(
    ("values", "scaled", "unit"),
    [([0.0, 0.0], [0, 0], "1"), ([250, -20], [2.5, -0.2], "10²"), ([np.nan, 3], [np.nan, 3], "1")],
)
def test_units(values: list[float], scaled: list[float], unit: str) -> None:
    found, said = in_powers_of_ten(np.array(values))
    np.testing.assert_allclose(found, scaled)
    assert said == unit
