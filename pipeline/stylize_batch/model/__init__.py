"""The network and its mathematics: torch only, no storage, no Ray."""

import os

# Every layer makes a feature map of tens of megabytes, and the system clears its memory page by page: huge pages make
# that a quarter of the time of large pictures on a CPU less. Torch asks at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
