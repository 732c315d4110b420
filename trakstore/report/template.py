"""Templates of pages: their filters, their escaping, and the policy that a browser enforces."""

from __future__ import annotations

import base64
import hashlib
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from trakstore.markup import one_line, printable
from trakstore.report.text_parts import ScoredPart
from trakstore.report.units import written

if TYPE_CHECKING:
    from jinja2 import Environment

_SHARED_SCRIPTS = ("theme.js", "cut_boxes.js")
_FORMS = {"number": ".3g", "tenths": ".1f", "hundredths": ".2f"}


@cache
def template_environment() -> Environment:
    """Make the environment of the templates that come with the package.

    All text is escaped, except what is given as ``Markup``.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    # Markup is not escaped: the page's own style and script, and charts, whose texts ElementTree
    # escaped. A name that the template uses and nobody gave is an error, not "".
    environment = Environment(
        loader=FunctionLoader(packaged_text),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_spelled_out,
    )
    environment.filters |= {name: partial(written, form) for name, form in _FORMS.items()}
    environment.filters |= {
        "percent": "{:.0%}".format,
        "in_lines": _in_lines,
        "short_id": _short_id,
        "shade": _shade,
    }
    return environment


def packaged_text(name: str, package: str = "trakstore.report") -> str:
    """Read a file that comes with a package."""
    return files(package).joinpath(name).read_text("utf-8")


def page_script(own: str) -> str:
    """Join the scripts that all pages share, in their order, and the page's own."""
    return "".join(map(packaged_text, _SHARED_SCRIPTS)) + own


def page_style() -> str:
    """Return the style of pages that show samples."""
    return packaged_text("page.css") + packaged_text("tokens.css")


def content_policy(style: str, script: str) -> str:
    """Write a Content-Security-Policy, under which a text that escaped the escaping could not run.

    Style and script are allowed by their hashes, and images within the page. Everything else is
    forbidden: loading, forms, and a ``<base>`` element, which would redirect links.
    """

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest(style)}'; "
        f"script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _spelled_out(value: Any) -> Any:
    """Write control characters, such as line breaks and marks of writing direction, as escapes.

    Jinja's escaping leaves them alone. The type is compared exactly, because Markup, the page's own
    HTML, is a subclass of str.
    """
    return printable(value) if type(value) is str else value


def _short_id(name: object) -> str:
    """Shorten an id for a narrow place; it may be a whole prompt."""
    return one_line(name, 24)


def _shade(part: ScoredPart) -> str:
    """Return the classes of a token: its sign, and its share of the largest score."""
    way = "for" if part.level > 0 else "against"
    return f" {way} {way}{abs(part.level)}" if part.level else ""


def _in_lines(text: str) -> str:
    """Escape a text but keep its line breaks and tabs, where these do no harm."""
    from markupsafe import escape

    return escape(printable(text, keep="\n\t"))
