"""Which checkpoints are kept, and what of the rest is removed."""

from __future__ import annotations

from tablebay.client.checkpoint.destination import Destination
from tablebay.client.checkpoint.manifest import Manifest
from tablebay.client.checkpoint.storage import NotThere, StorageError
from tablebay.client.errors import CheckpointInvalid
from tablebay.ps_server.telemetry import Events

_EVENTS = Events(__name__)


def remove_unneeded(destination: Destination, retain_last: int) -> list[int]:
    """Keep that many complete checkpoints, and what they name; the numbers of those removed.

    For server 0, after it has made a manifest. Fences stay: they are what stops an older life of server 0. A
    manifest is removed before what it names, so nothing complete is ever without its files. What cannot be removed
    is logged, and tried again next time.
    """
    try:
        return _remove_unneeded(destination, max(1, retain_last))
    except StorageError as error:
        _EVENTS.warning("checkpoint.not_removed", cause=str(error))
        return []


def _remove_unneeded(destination: Destination, retain_last: int) -> list[int]:
    numbers = destination.numbers()
    kept: list[Manifest] = []
    unreadable = 0
    removed: list[int] = []
    for number in reversed(numbers):
        try:
            if destination.is_fence(number):
                continue
            if len(kept) < retain_last:
                kept.append(destination.manifest(number))
                continue
        except CheckpointInvalid:
            # Perhaps a newer Tablebay's, whose files are not to be taken from it.
            if len(kept) < retain_last:
                unreadable += 1
                continue
        except NotThere:
            continue
        destination.remove_manifest(number)
        removed.append(number)
    if numbers and not unreadable:
        _remove_attempts(destination, kept, numbers[-1])
    return removed


def _remove_attempts(destination: Destination, kept: list[Manifest], newest: int) -> None:
    """Those that no kept manifest names. newest: what has a higher number may be under way."""
    named = {attempt for manifest in kept for attempt in manifest.attempts()}
    states = {state.path for manifest in kept for state in manifest.states()}
    with_states = {path.split("/")[1] for path in states}
    for name, number in destination.attempts().items():
        if name in named or number > newest:
            continue
        if name not in with_states:
            destination.remove_attempt(name)
            continue
        path = destination.attempt_path(name)
        for file in destination.storage.list(path):
            if f"{path}/{file}" not in states:
                destination.storage.remove(f"{path}/{file}")
