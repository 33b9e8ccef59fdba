"""The heap of feature maps: what was freed is used again, whichever thread asks."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeManifest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

MAPS = """
import resource, sys, threading
import torch
from stylize_batch.heap import keep_freed_memory

def make_maps():
    for _ in range(6):
        torch.ones(64, 2**20)  # 256 MB

def clear_pages():
    lane = threading.Thread(target=make_maps)
    lane.start()
    lane.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if "keep" in sys.argv:
    keep_freed_memory()
first, *_, last = [clear_pages() for _ in range(4)]
print(last - first)
"""

COMMAND = """
import ctypes
from stylize_batch.cli import main

try:
    main()
finally:
    libc = ctypes.CDLL(None)
    libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
    libc.fflush(None)
"""


def output_of(script: str, *given: object) -> str:
    command = [sys.executable, "-c", script, *map(str, given)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_feature_maps_of_a_lane_take_the_memory_of_the_last_ones() -> None:
    # A freed map may be too small by the few bytes of alignment, so that one of many asks the system for memory again.
    kept, given_back = int(output_of(MAPS, "keep")), int(output_of(MAPS))
    assert kept < given_back / 2


def test_all_threads_of_a_run_in_process_share_one_heap(
    make_manifest: MakeManifest, contents: list[str], styles: list[str], tmp_path: Path
) -> None:
    manifest = make_manifest([{"content": content, "style": styles[:1]} for content in contents])
    options = ("--in-process", "--device", "cpu", "--style-size", 48)
    told = output_of(COMMAND, "run", manifest, "-o", tmp_path / "out", *options)
    assert told.count("<heap nr=") == 1
