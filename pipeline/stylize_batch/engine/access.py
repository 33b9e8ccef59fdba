"""What a node finds out of itself before it gets work: whether it reads the output root, and what others read."""

from __future__ import annotations

from typing import NamedTuple

import ray

from stylize_batch.errors import RowError, SystemicError
from stylize_batch.manifest.shards import read_shard, shard_key
from stylize_batch.root import Root
from stylize_batch.settings import WorkerSettings
from stylize_batch.storage import absolute, fingerprint


class Asked(NamedTuple):
    """What came of asking for the first content.

    Attributes:
        reads: whether it can be read.
        refusal: why it cannot; None where that may be for now only.
    """

    reads: bool
    refusal: str | None


def ask_for_content(root: Root, settings: WorkerSettings) -> Asked:
    """Ask for the plan's first content, without reading it.

    Raises:
        SystemicError: the plan is damaged.
        OSError: the plan cannot be read.
    """
    content = read_shard(root, 0, settings.run)["content"][0].as_py()
    try:
        fingerprint(absolute(content, settings.base))
    except RowError as error:
        return Asked(False, None if error.transient else str(error))
    except SystemicError as error:
        return Asked(False, str(error))
    return Asked(True, None)


def check_newcomer(settings: WorkerSettings) -> None:
    """See to it that the node this process runs on, which nobody has looked at, reads what others read.

    Whether it can write, its first shard tells: no row fails of that.

    Raises:
        SystemicError: it does not.
    """
    root = Root(settings.root, settings.run)
    try:
        lacks = _lacks(root, settings)
    except OSError as error:
        lacks = cannot_use(root, error)
    if lacks is not None:
        raise SystemicError(f"node {ray.util.get_node_ip_address()} {lacks}")


def _lacks(root: Root, settings: WorkerSettings) -> str | None:
    if root.local and not root.exists(shard_key(0)):
        return not_shared(root)
    refusal = ask_for_content(root, settings).refusal
    return None if refusal is None else cannot_read(refusal)


def cannot_read(refusal: str) -> str:
    """Return what is wrong with a node that alone cannot read the first content."""
    return (
        f"cannot read what others can: {refusal}; nodes need credentials, permissions and mounts of their own"
    )


def cannot_use(root: Root, error: OSError) -> str:
    """Return what is wrong with a node to which storage refuses the output root."""
    return f"cannot use {root.uri}: {error}; nodes need credentials or permissions of their own"


def not_shared(root: Root) -> str:
    """Return what is wrong with a node on which a local output root is another folder."""
    return f"does not share {root.uri}; with several nodes use object storage or a shared file system for --output"
