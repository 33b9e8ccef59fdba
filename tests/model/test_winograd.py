"""Winograd's convolutions against the plain ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stylize_batch.model.convolution import (
    EnlargingConv2d,
    ReflectedConv2d,
    SubPixelConv2d,
)
from stylize_batch.model.quick import has_fast_groups
from stylize_batch.model.winograd import BLOCK_CHANNELS, BLOCK_TILES, MIN_TILES, Winograd
from tests.conftest import cores

pytestmark = pytest.mark.skipif(not has_fast_groups(), reason="Winograd's way is not taken on this processor")

sides = st.integers(2, 37)


def pair(
    kind: type[ReflectedConv2d],
    channels: int = 3,
    *,
    bias: bool = True,
    relu: bool = False,
    pool: bool = False,
) -> tuple[ReflectedConv2d, Winograd]:
    """Return a convolution as trained, and the same by Winograd's way."""
    torch.manual_seed(channels)
    conv = kind(channels, 5, relu=relu).requires_grad_(False)
    conv.pool = pool
    if not bias:
        conv.bias = None
    if isinstance(conv, EnlargingConv2d):
        plain = SubPixelConv2d(conv)
        return conv, Winograd(plain, plain.weight, plain.bias, scale=2, relu=relu)
    return conv, Winograd(conv, conv.weight, conv.bias, relu=relu, pool=pool)


def check_rounding(made: torch.Tensor, expected: torch.Tensor) -> None:
    """Of float32: sums of 27 products keep four digits of seven."""
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)


@given(
    st.sampled_from([ReflectedConv2d, EnlargingConv2d]),
    sides,
    sides,
    st.integers(1, 2),
    st.booleans(),
    st.booleans(),
)
def test_winograds_way_is_the_convolution(
    kind: type[ReflectedConv2d], height: int, width: int, samples: int, bias: bool, relu: bool
) -> None:
    conv, quick = pair(kind, bias=bias, relu=relu)
    features = torch.randn(samples, 3, height, width)
    check_rounding(quick(features), conv(features))


@given(sides, sides, st.booleans())
def test_pooling_keeps_the_highest_of_four_and_of_fewer_at_an_odd_border(
    height: int, width: int, relu: bool
) -> None:
    conv, quick = pair(ReflectedConv2d, relu=relu, pool=True)
    features = torch.randn(2, 3, height, width)
    check_rounding(quick(features), conv(features))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("kind", "pool"), [(ReflectedConv2d, False), (ReflectedConv2d, True), (EnlargingConv2d, False)]
)
def test_what_is_not_a_number_is_none_afterwards(kind: type[ReflectedConv2d], pool: bool, relu: bool) -> None:
    conv, quick = pair(kind, relu=relu, pool=pool)
    features = torch.randn(1, 3, 24, 24)
    features[0, 1, 9, 14] = torch.nan
    expected = conv(features).isnan()
    assert expected.any()
    # Its whole tile is lost, which the convolution keeps in part.
    assert (quick(features).isnan() >= expected).all()


@pytest.mark.parametrize("kind", [ReflectedConv2d, EnlargingConv2d])
def test_every_memory_format_gives_the_same_bits(kind: type[ReflectedConv2d]) -> None:
    _, quick = pair(kind)
    features = torch.randn(1, 3, 30, 40)
    expected = quick(features)
    assert torch.equal(quick(features.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(quick(torch.nn.functional.pad(features, (3, 2, 1, 5))[..., 1:-5, 3:-2]), expected)


def test_small_maps_are_convolved_as_trained() -> None:
    conv, quick = pair(ReflectedConv2d)
    features = torch.randn(1, 3, 4, 4 * (MIN_TILES - 1))
    assert torch.equal(quick(features), conv(features))


@pytest.mark.parametrize("kind", [ReflectedConv2d, EnlargingConv2d])
def test_many_blocks_of_tiles_make_one_picture_without_seams(kind: type[ReflectedConv2d]) -> None:
    conv, quick = pair(kind, BLOCK_CHANNELS)
    # Full blocks, and smaller ones for what is left.
    features = torch.randn(1, BLOCK_CHANNELS, 13, 4 * BLOCK_TILES + 6)
    check_rounding(quick(features), conv(features))


@pytest.mark.parametrize("kind", [ReflectedConv2d, EnlargingConv2d])
def test_threads_do_not_change_a_bit(kind: type[ReflectedConv2d]) -> None:
    _, quick = pair(kind, 130)
    features = torch.randn(2, 130, 60, 60)
    made: list[torch.Tensor] = []
    for count in (1, 2, 3):
        with cores(count):
            made.append(quick(features))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


PASSES = """
import torch
from torch.backends import mkldnn
from stylize_batch.model import checkpoint, container
from stylize_batch.model.network import Network

network = Network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)))
for level in (mkldnn.VERBOSE_OFF, mkldnn.VERBOSE_ON):
    for threads in (1, 8):
        torch.set_num_threads(threads)
        with mkldnn.verbose(level):
            network.encode_styles(torch.rand(1, 3, 200, 136))
"""


def test_kernels_are_packed_once_and_not_for_every_block() -> None:
    done = subprocess.run([sys.executable, "-c", PASSES], capture_output=True, text=True, check=True)
    assert re.search(r"cpu,convolution,.*,g36mb", done.stdout)
    assert not re.findall(r"cpu,reorder,.*,36x.*", done.stdout)


ENCODES = """
import resource
import torch
from stylize_batch.model import winograd
from stylize_batch.model.convolution import ReflectedConv2d

# limit
conv = ReflectedConv2d(3, 5)
with torch.inference_mode():
    features = torch.randn(1, 3, 40, 40)
    print(torch.allclose(winograd.Winograd(conv, conv.weight, conv.bias)(features), conv(features), atol=1e-4))
"""


def test_transforms_are_compiled_where_there_is_no_space_to_keep_them(tmp_path: Path) -> None:
    encode(tmp_path, ENCODES.replace("# limit", "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"))


def test_transforms_are_compiled_where_what_was_kept_is_damaged(tmp_path: Path) -> None:
    encode(tmp_path, ENCODES)
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    encode(tmp_path, ENCODES)


def encode(cache: Path, program: str) -> None:
    """Run a program that convolves both ways, in a new process."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_a_failed_block_is_told_and_leaves_no_work_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    _, quick = pair(ReflectedConv2d)
    features = torch.randn(1, 3, 400, 400)
    calls = 0

    def scatter(*_: object) -> None:
        nonlocal calls
        calls += 1
        raise MemoryError

    monkeypatch.setattr(quick, "_transforms", (quick._transforms[0], scatter))  # pyright: ignore
    with cores(2), pytest.raises(MemoryError):
        quick(features)
    failed = calls
    assert failed <= 2
    time.sleep(0.2)
    assert calls == failed


def test_new_threads_have_the_callers_number_of_cores_afterwards() -> None:
    _, quick = pair(ReflectedConv2d)
    with cores(3):
        quick(torch.randn(1, 3, 100, 100))
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3


def test_autocast_leaves_the_result_in_float32() -> None:
    conv, quick = pair(ReflectedConv2d)
    features = torch.randn(1, 3, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        made = quick(features.bfloat16())
    assert made.dtype == torch.float32
    check_rounding(made, conv(features.bfloat16().float()))


def test_a_network_on_a_gpu_needs_no_numba() -> None:
    program = (
        "import sys, torch; sys.modules['numba'] = sys.modules['triton'] = None\n"
        "torch.Tensor.is_cuda = property(lambda tensor: True)\n"
        "from stylize_batch.model import checkpoint, container, network\n"
        "network.Network(checkpoint.loads(container.builtin_bytes(container.DEFAULT)), precision='bf16')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
