"""Tables and pictures of results, and one page of them."""

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
