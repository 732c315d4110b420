"""Refusal of files that hold anything but plain tensors."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from trakstore.errors import TrakStoreError
from trakstore.features.wording import first_line

# Errors that unpicklers and parsers raise for bytes that they do not expect.
_UNREADABLE = (
    *(pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, LookupError),
    *(AttributeError, ImportError, TypeError, ValueError),
)


@contextmanager
def plain_tensors(where: object) -> Iterator[None]:
    """Raise one clear error when what is read within is no file of plain tensors.

    Raises
    ------
    TrakStoreError
        With the reason, and what to save instead.
    """
    try:
        yield
    except TrakStoreError:
        raise
    except _UNREADABLE as error:
        raise TrakStoreError(
            f"{where} is not a file of plain tensors ({_reason(error)}); save it by "
            f"torch.save(model.state_dict(), path) or safetensors.torch.save_file"
        ) from None


def _reason(error: Exception) -> str:
    """Return why a file was not read; torch's own message advises to let the file run its code."""
    if not isinstance(error, pickle.UnpicklingError):
        return first_line(error)
    code = re.search(r"GLOBAL (\S{1,100})", str(error))
    return f"it holds {code[1]}, which is code" if code else "it is no pickle of tensors"
