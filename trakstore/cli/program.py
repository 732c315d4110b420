"""Words that start this program, for commands that results suggest."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from trakstore.paths import is_file


def program_words() -> str:
    """Return the quoted words by which a user's shell starts this program.

    This is ``trakstore`` if the shell finds this environment's program by that name. Otherwise, as when
    the environment is not activated, it is the program's path, or this Python with ``-m trakstore``.
    """
    own = Path(sys.executable).with_name("trakstore")
    found = shutil.which("trakstore")
    if not is_file(own):
        return f"{shlex.quote(sys.executable)} -m trakstore"
    # Another environment's program may have another version, or be unable to load the job.
    if found is not None and Path(found).samefile(own):
        return "trakstore"
    return shlex.quote(str(own))
