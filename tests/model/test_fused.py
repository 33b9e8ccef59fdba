"""The kernel between two convolutions on a GPU; `tests/integration/test_gpu.py` runs it on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("fused_checks.py")


def test_what_stands_between_convolutions_is_computed_in_one_pass() -> None:
    pytest.importorskip("triton")
    # A process of its own: Triton decides while it is imported whether kernels are interpreted.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS],
        capture_output=True, text=True, check=False, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_without_triton_a_network_is_rewritten_as_far_as_torch_goes() -> None:
    program = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "from stylize_batch.model import convolution, quick\n"
        "from stylize_batch.model.decoder import Decoder\n"
        "decoder = Decoder('vgg16').to(torch.bfloat16)\n"
        "torch.Tensor.is_cuda = property(lambda tensor: True)\n"
        "quick.quicken(decoder)\n"
        "assert any(isinstance(each, convolution.SubPixelConv2d) for each in decoder.children())"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
