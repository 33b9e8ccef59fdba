"""Find a model by its name, path or URI."""

from __future__ import annotations

from stylize_batch.errors import RowError, SystemicError, UsageError
from stylize_batch.model import container
from stylize_batch.storage import read_bytes


def read_model(model: str) -> bytes:
    """Return the bytes of a model file.

    Args:
        model: the name of a model shipped with the package, or a path or URI of a safetensors file.

    Raises:
        UsageError: there is no such model, or it cannot be read.
    """
    if model in container.BUILTIN:
        return container.builtin_bytes(model)
    try:
        return read_bytes(model)
    except (RowError, SystemicError) as error:
        raise UsageError(
            f"unknown model {model!r}: it is neither shipped ({', '.join(container.BUILTIN)}) nor a file that "
            f"can be read ({error})"
        ) from None
