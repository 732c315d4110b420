"""The live page: a report that can be asked, whole in one response."""

from __future__ import annotations

from functools import cache

from trakstore.report.template import content_policy, packaged_text, page_script, page_style
from trakstore.serve.rendering import PACKAGE


@cache
def live_page() -> str:
    """Return the page; it holds nothing of the store, and requests that itself."""
    style, script = _parts()
    page = packaged_text("live.html", PACKAGE)
    return page.replace("/* style */", style).replace("/* script */", script)


@cache
def page_policy() -> str:
    """Return the page's content security policy: its own style and script, requests to its origin."""
    return f"{content_policy(*_parts())}; connect-src 'self'; frame-ancestors 'none'"


def _parts() -> tuple[str, str]:
    style = page_style() + packaged_text("live.css", PACKAGE)
    return style, page_script(packaged_text("live.js", PACKAGE))
