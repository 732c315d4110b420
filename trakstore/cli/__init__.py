"""The commands: ``trakstore``, or ``python -m trakstore``; one a file."""

from __future__ import annotations

from trakstore.cli.app import main

__all__ = ["main"]
