"""The report: one HTML page that holds all it needs and may load nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from trakstore.errors import TrakStoreError
from trakstore.markup import without_folders
from trakstore.planning import human_bytes
from trakstore.report.cards import change_cards, suspect_cards
from trakstore.report.charts import plot_distribution, plot_spectrum
from trakstore.report.formula import Formula, method_formula
from trakstore.report.highlights import highlights
from trakstore.report.inline_svg import inline_svg, untitled
from trakstore.report.sections import SECTIONS, Classes, Findings
from trakstore.report.store_facts import store_facts, store_verdict
from trakstore.report.target_panels import panels
from trakstore.report.template import (
    content_policy,
    packaged_text,
    page_script,
    page_style,
    template_environment,
)
from trakstore.report.units import colour_level, in_powers_of_ten

# Most bytes of a page that browsers on a telephone still open.
MOST_BYTES = 2**25
# Most lines of the tables about the store; the last ones are kept.
MOST_SPLITS, MOST_RUNS = 100, 50


def render_page(findings: Findings) -> str:
    """Render the whole page.

    All text is escaped: ids, labels, names of files and samples come from others, and a page is passed
    on. A Content-Security-Policy allows only the page's own style and script, by their hashes, and
    images embedded in the page; nothing is loaded, nothing can be sent.

    Parameters
    ----------
    findings : Findings
        Everything that the page shows.

    Raises
    ------
    TrakStoreError
        When the page has more than 32 MB.
    """
    from markupsafe import Markup

    style, script = page_style(), page_script(packaged_text("page.js"))
    levels, unit = ([], "") if findings.classes is None else _levels(findings.classes)
    # A page is passed on: its readers need not know paths of the machine that made it.
    local = partial(without_folders, known=str(findings.store.location))
    shown = panels(findings)
    page = (
        template_environment()
        .get_template("page.html")
        .render(
            findings=findings,
            sections=SECTIONS,
            style=Markup(style),
            script=Markup(script),
            policy=content_policy(style, script),
            drawn={name: Markup(svg) for name, svg in _drawings(findings).items()},
            name=local(str(findings.store.location)),
            local=local,
            formula=_formula(findings),
            highlights=highlights(findings, shown),
            facts_of_store={**store_facts(findings.contents), **findings.provenance},
            verdict=store_verdict(findings.contents),
            splits=findings.contents.splits[-MOST_SPLITS:],
            runs=findings.contents.runs[-MOST_RUNS:],
            markup=Markup,
            panels=shown,
            suspects=suspect_cards(findings),
            changes=_changes(findings),
            levels=levels,
            unit=unit,
        )
        .strip()
    )
    if (size := len(page.encode("utf-8", "surrogatepass"))) > MOST_BYTES:
        raise TrakStoreError(
            f"the page would have {human_bytes(size)}, and {human_bytes(MOST_BYTES)} is the most that "
            f"browsers open: ask for fewer targets, shorter lists (k=, --k) or smaller pictures"
        )
    return page


def _formula(findings: Findings) -> Formula:
    output = findings.store.spec.output
    name = None if output is None else output.name
    return method_formula(findings.scores, name, findings.asked["damping"])


def _drawings(findings: Findings) -> Mapping[str, str]:
    drawn = {
        "pooled": inline_svg(
            lambda axes: untitled(plot_distribution(findings.spread, None, axes)),
            "Histogram of scores of the targets shown, in standard deviations from each target's mean",
            "pooled",
            (4.6, 2.4),
        )
    }
    if findings.kernels:
        drawn["spectrum"] = inline_svg(
            lambda axes: plot_spectrum(findings.kernels, axes),
            "Eigenvalues of each kernel, largest first; the table beside it has the numbers",
            "spectrum",
            (4.6, 3.4),
        )
    return drawn


def _changes(findings: Findings) -> list[tuple[str, Any]]:
    if findings.transition is None:
        return []
    change = findings.transition[2]
    lists: dict[str, xr.Dataset] = {"Gained": change.gained, "Lost": change.lost}
    return [(name, change_cards(findings, listed)) for name, listed in lists.items()]


def _levels(classes: Classes) -> tuple[list[list[tuple[float, int]]], str]:
    """Return means divided by a power of ten, each with its colour level, and that power as text."""
    scaled, unit = in_powers_of_ten(classes.means)
    most = float(np.abs(scaled).max())
    return [[(one, colour_level(one, most)) for one in row] for row in scaled.tolist()], unit
