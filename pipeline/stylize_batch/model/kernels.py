"""Kernels of our own on a GPU: how they are launched, and the trial before one is used. torch's operators do the same."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from stylize_batch.errors import one_line

_Kernel = TypeVar("_Kernel")

_log = logging.getLogger(__name__)

_LAUNCHING = threading.Lock()
"""Triton compiles a kernel when it is first launched, and two threads feed a GPU."""


@contextmanager
def launching(on: Tensor) -> Generator[None]:
    """Launch a kernel in here, on a tensor's device.

    Raises:
        RuntimeError: it failed; Triton itself raises what is no RuntimeError, as torch's operators do.
    """
    try:
        with torch.cuda.device_of(on), _LAUNCHING:
            yield
    except RuntimeError:
        raise
    except Exception as error:
        raise RuntimeError(f"a kernel cannot be launched: {type(error).__name__}: {error}") from error


def tried(
    load: Callable[[torch.device, torch.dtype], _Kernel | None],
) -> Callable[[torch.device, torch.dtype], _Kernel | None]:
    """Decorate what imports a kernel and tries it on a device: it is called once for each, and None is logged.

    Raises:
        OutOfMemoryError: there was no memory for the trial, which says nothing of the kernel; the next call tries again.
    """

    @functools.cache
    def kernel(device: torch.device, dtype: torch.dtype) -> _Kernel | None:
        reason = "its numbers are not those of torch's operators"
        found = None
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                found = load(device, dtype)
        except torch.OutOfMemoryError:
            raise
        except (
            Exception
        ) as error:  # no Triton (only torch's CUDA builds have it), or whatever a compiler or driver raises
            reason = one_line(f"{type(error).__name__}: {error}")
        if found is None:
            name = load.__name__.strip("_")
            _log.warning("the kernel %s is not used on %s, which is then slower: %s", name, device, reason)
        return found

    return kernel
