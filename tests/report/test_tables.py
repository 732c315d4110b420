"""Tables say what they were given, within the width of a terminal."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from rich.table import Table

from trakstore.evaluation.verdicts import Check
from trakstore.report.analysis_tables import change_table, group_table
from trakstore.report.evaluation_tables import check_lines, passed_lines, suspects_table
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


def test_groups_fit_a_terminal_in_one_unit() -> None:
    means = np.diag(np.arange(1.0, 11.0)) * 0.004
    means[0, 1] = -1e-9
    lines = text(group_table(means, range(10), range(10)), width=80).splitlines()
    assert "mean scores, in 10⁻²" in lines[0]
    numbers = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
    assert [row[1:] for row in numbers] == [[f"{x * 100:+z.1f}" for x in row] for row in means]
    assert "-0.0" not in "".join(lines)


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
