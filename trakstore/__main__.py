"""``python -m trakstore``: the same as the ``trakstore`` command."""

from __future__ import annotations

import sys

from trakstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
