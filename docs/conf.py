"""Settings of the documentation, which Sphinx builds: ``.ci/docs FOLDER`` writes the pages there.

Nothing is asked of the network, and a warning is an error.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import commands  # noqa: E402

import trakstore  # noqa: E402

project = "trakstore"
author = "the authors of trakstore"
copyright = "the authors of trakstore, Apache-2.0"  # noqa: A001
version = release = trakstore.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",
]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Markdown: links to headings work by the names that GitHub gives them.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

# Reference: a page for each name; a class's members stand on its page.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "trakstore"
html_show_sourcelink = False
html_sidebars = {"*": []}  # pages without others beside them
html_theme_options: dict[str, Any] = {
    "navbar_align": "left",
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

GENERATED = DOCS / "reference" / "generated"

# Files outside this folder that have a page here: a link leads to the page.
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "trakstore/storage/FORMAT.md": "format.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
}


def lead_to_pages(_app: object, name: str, source: list[str]) -> None:
    """Point links in a page's source to pages of this site, where GitHub's readers want files."""
    up = "../" * (name.count("/") + 1)
    here = "../" * name.count("/")
    for file, page in PAGES.items():
        source[0] = re.sub(rf"\]\({re.escape(up + file)}", f"]({here}{page}", source[0])


def find_by_last_name(app: Any, _env: object, node: Any, content: Any) -> Any:
    """Resolve the name of the module that holds an object to the page of its public name."""
    if node.get("refdomain") != "py":
        return None
    domain = app.env.get_domain("py")
    last = node["reftarget"].rsplit(".", 1)[-1]
    known = {name for name in domain.objects if name.rsplit(".", 1)[-1] == last}
    if not node["reftarget"].startswith("trakstore.") or len(known) != 1:
        return None
    where = (app.env, node["refdoc"], app.builder, node["reftype"])
    return domain.resolve_xref(*where, known.pop(), node, content)


def setup(app: Any) -> None:
    """Write the page of commands before Sphinx looks for pages; what was generated before goes."""
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    (GENERATED / "commands.md").write_text(commands.page())
    app.connect("source-read", lead_to_pages)
    app.connect("missing-reference", find_by_last_name)
