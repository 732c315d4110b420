"""Words that start this program, for the commands that a result ends with."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from trakstore.paths import is_file


def program_words() -> str:
    """Return what a user's shell starts this program by, quoted.

    That is ``trakstore`` where the shell finds the one of this environment by that name; else, as when
    the environment is not activated, its path, or this Python with ``-m trakstore``.
    """
    own = Path(sys.executable).with_name("trakstore")
    found = shutil.which("trakstore")
    if not is_file(own):
        return f"{shlex.quote(sys.executable)} -m trakstore"
    # Another environment's would be of another version, or could not read the job.
    if found is not None and Path(found).samefile(own):
        return "trakstore"
    return shlex.quote(str(own))
