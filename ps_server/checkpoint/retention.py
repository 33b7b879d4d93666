"""Which checkpoints go."""

from __future__ import annotations

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.manifest import Manifest
from tablebay.client.errors import CheckpointInvalid


def remove_unneeded(destination: Destination, retain_last: int) -> list[int]:
    """Keep the newest complete checkpoints, so many, and what they need; the numbers of those removed.

    By server 0 alone, with no attempt under way. A manifest that cannot be read stays, for somebody to look at; it
    keeps nothing else. Fences below the newest kept go too.
    """
    kept: list[Manifest] = []
    removed: list[int] = []
    unread: set[int] = set()
    for number in reversed(destination.numbers()):
        try:
            found = destination.manifest(number)
        except CheckpointInvalid:
            unread.add(number)
            continue
        if len(kept) >= retain_last:
            removed.append(number)
        elif found.kind != "Fence":
            kept.append(found)
    if not kept:
        return []
    # First the manifests: what is not whole must not look it.
    for number in removed:
        destination.remove_manifest(number)
    needed = set().union(*(manifest.attempts() for manifest in kept))
    for name in destination.attempts():
        if name not in needed:
            destination.remove_attempt(name)
    return removed
