"""The network and its mathematics: torch only, no storage, no Ray."""

import os

# Every layer makes a feature map of tens of megabytes, and the system clears its memory page by page: fewer and larger
# ones take less time (docs/performance.md). Torch asks at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
