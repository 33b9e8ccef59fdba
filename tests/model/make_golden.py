"""Store what the shipped weights compute for a fixed picture: `python -m tests.model.make_golden`.

Run it only when new weights are meant to change the numbers.
"""

from __future__ import annotations

import safetensors.torch
import torch

from stylize_batch.model import checkpoint, container
from stylize_batch.model.architecture import TAPS
from stylize_batch.model.network import loss_network
from tests.model.test_vgg import GOLDEN, picture


def main() -> None:
    """Write golden.safetensors beside this file."""
    model = checkpoint.loads(container.builtin_bytes(container.DEFAULT))
    with torch.inference_mode():
        taps = loss_network(model).taps(picture())
        tensors = {name: tap[:, ::16, ::4, ::4].contiguous() for name, tap in zip(TAPS, taps, strict=True)}
        tensors["decoder"] = model.decoder(taps[-1])[:, :, ::4, ::4].contiguous()
    safetensors.torch.save_file(tensors, GOLDEN)


if __name__ == "__main__":
    main()
