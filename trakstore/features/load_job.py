"""Jobs by their names: ``jobs.py:digits``, or ``package.module:name``."""

from __future__ import annotations

from dataclasses import replace

from trakstore.errors import TrakStoreError
from trakstore.features.job import Job
from trakstore.named import call_named, load_named

__all__ = ["load_job"]


def load_job(name: str) -> Job:
    """Load the job that ``jobs.py:digits`` or ``package.module:name`` names.

    Parameters
    ----------
    name : str
        Name of a :class:`Job`, or of a function without arguments that returns one.

    Raises
    ------
    NotFoundError
        When the file, module or name does not exist.
    TrakStoreError
        When it is not a job.

    Examples
    --------
    >>> job = load_job("jobs.py:digits")  # doctest: +SKIP
    >>> load_job("jobs.py")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    trakstore.errors.TrakStoreError: a job is named like jobs.py:name or package.module:name, ...
    """
    job = load_named(name, "job")
    if callable(job) and not isinstance(job, Job):
        job = call_named(job, name, "job")
    if not isinstance(job, Job):
        raise TrakStoreError(
            f"{name} gave a {type(job).__name__}; it must be or return a trakstore Job"
        )
    return replace(job, name=job.name or name)
