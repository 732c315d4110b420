"""Limits on what one request, and all of them together, may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes
    ----------
    body_bytes : int
        Bytes of a request's body.
    body_seconds : float
        Seconds in which a body must have come.
    large_bodies : int
        Bodies of more than 64 KB that are read at the same time; others wait.
    seconds : float
        Seconds from a question to its answer, waiting included.
    waiting : int
        Questions that wait or are being answered; further ones are refused for the time being.
    threads : int
        Questions that are answered at the same time.
    letters : int
        Characters of a text that is asked about.
    """

    body_bytes: int = 8 * 2**20
    body_seconds: float = 15.0
    large_bodies: int = 32
    seconds: float = 60.0
    waiting: int = 512
    threads: int = 4
    letters: int = 200_000
