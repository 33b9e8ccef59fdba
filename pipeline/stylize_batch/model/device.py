"""The device a network runs on: whether it can be used, how much it takes at once, and copies that nobody waits for.

On a GPU each thread that feeds it has a stream of its own: what one launches or copies runs beside what another does,
and each waits for its own alone. On a CPU there is nothing to copy or to wait for.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import torch
from torch import Tensor

from stylize_batch.errors import DeviceError, UsageError

BATCH_PIXELS = 32 * 256 * 256
"""Pixels of an automatic batch on a GPU that has the memory: more would fill no card better."""

PIXEL_FLOATS = 1024
"""Numbers of memory for a pixel of a batch: about half is what the network holds, the rest for libraries' workspaces."""


def check_device(device: str) -> None:
    """Raise DeviceError where torch cannot use a device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"torch {torch.__version__} finds no CUDA here; install its CUDA build, and a driver that is new enough for it, or use the device cpu"
        )


def usable_device(name: str | torch.device) -> torch.device:
    """Return the device that a user names; `auto` is a GPU where there is one, `cuda:1` the second of several.

    Raises:
        UsageError: the name is unknown, or torch cannot use it here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"device {name} is unknown; use auto, cpu, cuda or one of several GPUs, such as cuda:1"
        )
    try:
        check_device(device.type)
    except DeviceError as error:
        raise UsageError(f"device {name}: {error}") from None
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(f"device {name}: torch finds {count} GPUs here; the last is cuda:{count - 1}")
    return device


def keep_float32() -> None:
    """Have GPUs compute float32 in float32: otherwise cuDNN rounds what convolutions take to 10 bits (TF32)."""
    torch.backends.cudnn.allow_tf32 = False


def batch_pixels(free: int, dtype: torch.dtype) -> int:
    """Return how many pixels to take at once on a GPU with so many bytes of memory to use.

    A power of two times 64 × 64, so that what little else runs on the card does not change it.
    """
    pixels = BATCH_PIXELS
    while pixels > 64 * 64 and pixels * PIXEL_FLOATS * dtype.itemsize > free:
        pixels //= 2
    return pixels


def images_at_once(images: Tensor) -> int:
    """Return how many of these images [N, 3, H, W] make an automatic batch; one that is larger makes its own."""
    return max(1, BATCH_PIXELS // images[0, 0].numel())


def free_memory(device: torch.device, share: float) -> int:
    """Return the bytes of a GPU's memory that nobody uses, at most a share of all: others begin at the same time."""
    free, total = torch.cuda.mem_get_info(device)
    return min(free, int(share * total))


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had, of a GPU or of the host."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    # The texts are torch's on a CPU and CUDA's own.
    return known or "can't allocate memory" in str(error) or "out of memory" in str(error)


def answers(device: torch.device) -> bool:
    """Whether a device still computes; a GPU's error may have been of one call, or have ended its use for good."""
    try:
        torch.ones(1, device=device).add_(1).cpu()
    except RuntimeError:
        return False
    return True


def own_streams(device: torch.device, count: int) -> Callable[[], None]:
    """Return what gives each of so many threads a stream of its own on a GPU, beside which the others' work runs.

    Streams are made once for threads that come and go: memory that was used on a stream is used again only there.
    """
    if device.type != "cuda":
        return lambda: None
    streams = cycle([torch.cuda.Stream(device) for _ in range(count)])
    return lambda: torch.cuda.set_stream(next(streams))


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy values to the device; on a GPU the copy is only begun."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_host(*values: Tensor) -> tuple[Tensor, ...]:
    """Copy values to the CPU, all of them before the one wait."""
    return begin_to_host(*values)()


def begin_to_host(*values: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to copy values to the CPU; what is returned waits for them, and for nothing launched since."""
    found = tuple(
        torch.empty_like(each, device="cpu", pin_memory=True).copy_(each, non_blocking=True)
        if each.is_cuda
        else each
        for each in values
    )
    wait = _waiting(values[0].device)

    def finish() -> tuple[Tensor, ...]:
        wait()
        return found

    return finish


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what this thread gave it, and leave the core to others meanwhile."""
    _waiting(device)()


def _waiting(device: torch.device) -> Callable[[], None]:
    """Return what waits until a GPU has done what this thread has given it so far."""
    if device.type != "cuda":
        return lambda: None
    reached = torch.cuda.Event(blocking=True)
    reached.record(torch.cuda.current_stream(device))
    return reached.synchronize
