"""Tables and pictures of results, and one page of them.

A section of the page is computed in ``sections.py`` and laid out in ``page.html``, its charts drawn in
``page.py``; what is shown for each target is a panel, made in ``target_panels.py``.
"""

from __future__ import annotations

from trakstore.report.charts import (
    plot_distribution,
    plot_evolution,
    plot_spectrum,
    plot_top,
)
from trakstore.report.write import WrittenReport, write_report

__all__ = [
    "WrittenReport",
    "plot_distribution",
    "plot_evolution",
    "plot_spectrum",
    "plot_top",
    "write_report",
]
