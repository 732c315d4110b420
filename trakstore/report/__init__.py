"""Pages, charts and tables of results.

Sections of the page are listed in one place, ``SECTIONS`` in ``sections.py``. Places for additions:

- a section: its name in ``SECTIONS``, its numbers in ``Findings`` of the same file, its HTML in
  ``page.html``, at the same place among the others;
- a sentence of the first screen: ``highlights.py``; the formula of a method: ``formula.py``;
- a part of the panel of a target: ``target_panels.py``, and the macro ``article`` of ``page.html``;
- an entry of a list (a card): ``cards.py``, and the macro ``cards`` of ``macros.html``;
- a kind of sample, such as images or texts: ``sample.py``, and the macro ``sample`` of ``macros.html``;
- a chart: a function in ``charts.py``, which ``page.py`` or ``target_panels.py`` puts on the page;
- a table of the page: ``page.html``; a table of the command line: ``analysis_tables.py``,
  ``evaluation_tables.py``, or ``terminal_tables.py`` for stores, kernels and lists of ``top_k``;
- what pages do by scripts: ``page.js``, and for the live page too ``theme.js`` and ``cut_boxes.js``;
- a fact about the store: ``store_facts.py``, for the page and for ``trakstore info``;
- an option of the report: ``write.py`` and ``cli/report.py``.
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
