"""The report: one HTML page that holds all it needs and may load nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr

from trakstore.errors import TrakStoreError
from trakstore.markup import printable
from trakstore.planning import human_bytes
from trakstore.report.cards import change_cards, colour_level, suspect_cards
from trakstore.report.charts import plot_distribution, plot_spectrum
from trakstore.report.inline_svg import inline_svg, untitled
from trakstore.report.sections import SECTIONS, Classes, Findings
from trakstore.report.store_facts import store_facts, store_verdict
from trakstore.report.target_panels import panels
from trakstore.report.units import in_powers_of_ten

_FORMS = {"number": ".3g", "signed": "+.2g", "tenths": ".1f", "hundredths": ".2f"}
# Bytes of a page: what browsers on a telephone still open.
MOST_BYTES = 2**25
# Most lines of the tables about the store; the last ones are shown.
MOST_SPLITS, MOST_RUNS = 100, 50


def render_page(findings: Findings) -> str:
    """Render the whole page.

    All text is escaped: ids, labels, names of files and samples are somebody else's, and a page is sent
    on. A Content-Security-Policy allows only the page's own style and script, by their hashes, and
    images embedded in the page; nothing is loaded, nothing can be sent.

    Parameters
    ----------
    findings : Findings
        Everything that the page shows.

    Raises
    ------
    TrakStoreError
        A page of more than 32 MB.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style, script = _packaged_text("page.css"), _packaged_text("page.js")
    # Only what is given as Markup is not escaped: the page's own style and script, and charts, whose
    # texts ElementTree escaped. A name that the template knows and nobody gave is an error, not "".
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_spelled_out,
    )
    environment.filters |= {name: partial(_written, form) for name, form in _FORMS.items()}
    environment.filters |= {"percent": "{:.0%}".format, "in_lines": _in_lines}
    levels, unit = ([], "") if findings.classes is None else _levels(findings.classes)
    page = (
        environment.from_string(_packaged_text("page.html"))
        .render(
            findings=findings,
            sections=SECTIONS,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
            drawn={name: Markup(svg) for name, svg in _drawings(findings).items()},
            facts_of_store=store_facts(findings.contents),
            verdict=store_verdict(findings.contents),
            splits=findings.contents.splits[-MOST_SPLITS:],
            runs=findings.contents.runs[-MOST_RUNS:],
            markup=Markup,
            panels=panels(findings),
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


def _spelled_out(value: Any) -> Any:
    """Write control characters, such as line breaks and marks of writing direction, as escapes.

    Jinja's escaping does not touch them. The type is compared exactly, because Markup is a subclass of
    str and holds the page's own HTML.
    """
    return printable(value) if type(value) is str else value


def _in_lines(text: str) -> str:
    """Escape a text whose line breaks and tabs stay: it stands where they do no harm."""
    from markupsafe import escape

    return escape(printable(text, keep="\n\t"))


def _packaged_text(name: str) -> str:
    return files("trakstore.report").joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Write a Content-Security-Policy: a text that got past the escaping could not run.

    Style and script are allowed by their hashes, and pictures within the page. All else is forbidden:
    loads, forms, and a ``<base>`` element, which would redirect links.
    """

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _drawings(findings: Findings) -> Mapping[str, str]:
    drawn = {
        "pooled": inline_svg(
            lambda axes: untitled(plot_distribution(findings.spread, None, axes)),
            "Histogram of scores of the targets shown, in standard deviations from each target's mean",
            "pooled",
            (7.0, 2.6),
        )
    }
    if findings.kernels:
        drawn["spectrum"] = inline_svg(
            lambda axes: plot_spectrum(findings.kernels, axes),
            "Eigenvalues of each kernel, largest first; the table beside it has the numbers",
            "spectrum",
            (7.0, 3.4),
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


def _written(form: str, value: float) -> str:
    """Write a number with a true minus sign; one that is rounded to zero has none."""
    text = f"{value:{form}}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
