"""`python -m stylize_batch`: the command line where only the package itself was sent, as on a cluster."""

from __future__ import annotations

import sys

try:
    from stylize_batch.cli import main

    main()
except ModuleNotFoundError as error:
    print(
        f"error: {sys.executable} has no package {error.name!r}; install stylize-batch on every node "
        "of the cluster, or choose an image that has it",
        file=sys.stderr,
    )
    sys.exit(2)
