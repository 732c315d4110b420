"""Questions about a path.

Since Python 3.14, :mod:`pathlib` says that nothing is there whatever the reason: a folder without
permission, a disk that fails, a name that is too long. Here only what is not there is not there; for
the rest the system's ``OSError`` is raised.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def exists(path: Path | str) -> bool:
    """Tell if something is there, behind links too."""
    return _mode(path) != 0


def is_file(path: Path | str) -> bool:
    """Tell if a regular file is there, behind links too."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path | str) -> bool:
    """Tell if a folder is there, behind links too."""
    return stat.S_ISDIR(_mode(path))


def is_link(path: Path | str) -> bool:
    """Tell if a symbolic link is there."""
    return stat.S_ISLNK(_mode(path, follow=False))


def _mode(path: Path | str, follow: bool = True) -> int:
    """Kind and permissions of what is there; 0 for nothing."""
    try:
        return os.stat(path, follow_symlinks=follow).st_mode  # noqa: PTH116 (a str is not made a Path)
    except ValueError:  # a character that no path can have
        return 0
    except OSError as error:
        if error.errno not in _NOTHING:
            raise
        return 0
