"""Tables and pictures of results, and one page of them; nothing is computed here."""

from __future__ import annotations

from trakstore.report.charts import (
    plot_distribution,
    plot_evolution,
    plot_spectrum,
    plot_top,
)

__all__ = ["plot_distribution", "plot_evolution", "plot_spectrum", "plot_top"]
