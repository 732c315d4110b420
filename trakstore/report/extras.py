"""Libraries that only some users need, and how to install them."""

from __future__ import annotations

from importlib import import_module

from trakstore.errors import TrakStoreError


def need_extra(purpose: str, extra: str, *modules: str) -> None:
    """Raise at once if a library of an extra is missing.

    Parameters
    ----------
    purpose : str
        Feature that needs it, for the message.
    extra : str
        Name of the extra with the libraries.
    *modules : str
        Names under which the libraries are imported.

    Raises
    ------
    TrakStoreError
        When a library is not installed.
    """
    for name in modules:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise TrakStoreError(
                f"{purpose} needs {error.name}, which is not installed: "
                f'pip install "trakstore[{extra}]"'
            ) from None
