"""An API server in memory, as far as the operator and Kubernetes' own controllers can tell.

Objects are never changed in place, nor what is given to make them: whoever has read one keeps what was read. Every
change has a resource version, and is told to whoever watches.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tablebay.client.environment import JOB_LABEL
from tablebay.operator.cluster import ApiError

Body = dict[str, Any]
# plural, namespace, name
Key = tuple[str, str, str]

# From a pod's deletion to the time by which it is to have ended, which is its deletionTimestamp.
GRACE = datetime.timedelta(seconds=30)

# What may change of the spec of one that exists; of the other kinds all may.
_MUTABLE = {
    "jobs": {"suspend", "backoffLimit", "activeDeadlineSeconds", "parallelism", "completions"},
    "statefulsets": {
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "persistentVolumeClaimRetentionPolicy",
    },
}
_WITHOUT_GENERATION = {"services", "serviceaccounts", "pods", "persistentvolumeclaims", "events", "secrets"}


@dataclass(frozen=True)
class Event:
    """A change: kind is ADDED, MODIFIED or DELETED."""

    version: int
    kind: str
    plural: str
    body: Body


class ApiServer:
    """Objects by plural, namespace and name. clock: the time in objects. tell: told of each change."""

    def __init__(self, clock: Callable[[], datetime.datetime], tell: Callable[[Event], None]) -> None:
        self.objects: dict[Key, Body] = {}
        # Every state of each object, oldest first; None once it is gone.
        self.states: dict[Key, list[tuple[int, Body | None]]] = {}
        # What there is and was, by plural.
        self._known: dict[str, set[Key]] = {}
        self.history: list[Event] = []
        self.version = 100
        # What admission makes of an object of that plural before it is kept: a webhook, a LimitRange.
        self.admission: Callable[[str, Body], Body] = lambda plural, body: body
        self._clock = clock
        self._tell = tell
        self._applied: dict[tuple[Key, str], Body] = {}
        self._made = 0

    # -- reading --

    def get(self, plural: str, namespace: str, name: str, *, at: int | None = None) -> Body | None:
        """An object as it is, or as it was at a version."""
        key = (plural, namespace, name)
        if at is None:
            return self.objects.get(key)
        found = None
        for version, body in self.states.get(key, ()):
            if version > at:
                break
            found = body
        return found

    def list(
        self, plural: str, namespace: str | None, selector: str = "", *, at: int | None = None
    ) -> list[Body]:
        """The objects of a kind with a label, `name` or `name=value`."""
        label, _, value = selector.partition("=")
        result = []
        for key in sorted(self._known.get(plural, ())):
            if namespace not in (None, key[1]):
                continue
            body = self.get(*key, at=at)
            if body is None:
                continue
            labels = body["metadata"].get("labels") or {}
            if not label or (label in labels and value in ("", labels[label])):
                result.append(body)
        return result

    # -- writing --

    def create(self, plural: str, namespace: str, body: Body, *, manager: str = "kubectl") -> Body:
        """Make an object. ApiError 409 where there is one."""
        key = (plural, namespace, body["metadata"]["name"])
        if key in self.objects:
            raise ApiError(409, "AlreadyExists", f'{plural} "{key[2]}" already exists')
        return self._make(key, dict(body), manager)

    def apply(self, plural: str, manifest: Body, manager: str, *, dry_run: bool = False) -> Body:
        """Server-side apply, by force: what the manager no longer names goes."""
        key = (plural, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        known = self.objects.get(key)
        if known is None:
            if dry_run:
                return manifest
            self._applied[key, manager] = manifest
            return self._make(key, dict(manifest), manager)
        before = self._applied.get((key, manager), {})
        wanted = self.admission(plural, _merged(_without(known, before, manifest), manifest))
        self._check(plural, known, wanted)
        if dry_run:
            return wanted
        self._applied[key, manager] = manifest
        return self._replace(key, known, wanted, manager)

    def patch(
        self, plural: str, namespace: str, name: str, patch: Body, *, subresource: str = "", manager: str
    ) -> Body:
        """Merge patch, on the condition of its resource version if it has one."""
        key = (plural, namespace, name)
        known = self.objects.get(key)
        if known is None:
            raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
        meta = known["metadata"]
        if (
            patch.get("metadata", {}).get("resourceVersion", meta["resourceVersion"])
            != meta["resourceVersion"]
        ):
            raise ApiError(409, "Conflict", f"{name}: the object has been modified")
        if subresource == "status":
            wanted = {**known, "status": _merge_patch(known.get("status") or {}, patch.get("status", {}))}
        else:
            wanted = _merge_patch(known, {name: part for name, part in patch.items() if name != "status"})
        self._check(plural, known, wanted)
        found = self._replace(key, known, wanted, manager, subresource=subresource)
        if "deletionTimestamp" in found["metadata"] and not found["metadata"].get("finalizers"):
            self._remove(key)
        return found

    def delete(
        self, plural: str, namespace: str, name: str, *, uid: str = "", resource_version: str = ""
    ) -> None:
        """Delete an object on conditions. One with finalizers, and a pod, stays for a while."""
        key = (plural, namespace, name)
        known = self.objects.get(key)
        if known is None:
            raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
        meta = known["metadata"]
        if (uid and meta["uid"] != uid) or (resource_version and meta["resourceVersion"] != resource_version):
            raise ApiError(409, "Conflict", f"{name}: the precondition does not hold")
        if plural == "pods" or meta.get("finalizers"):
            if "deletionTimestamp" not in meta:
                by = self._clock() + (GRACE if plural == "pods" else datetime.timedelta())
                wanted = {**known, "metadata": {**meta, "deletionTimestamp": text(by)}}
                self._replace(key, known, wanted, "")
            return
        self._remove(key)

    def remove_pod(self, namespace: str, name: str) -> None:
        """What the kubelet does when all of a pod has ended."""
        self._remove(("pods", namespace, name))

    def collect(self) -> None:
        """Delete what is owned by objects that are gone, as the garbage collector does."""
        uids = {body["metadata"]["uid"] for body in self.objects.values()}
        for key, body in list(self.objects.items()):
            owners = body["metadata"].get("ownerReferences") or ()
            if owners and not any(owner["uid"] in uids for owner in owners):
                self.delete(*key)

    # -- how it is done --

    def _make(self, key: Key, body: Body, manager: str) -> Body:
        self._made += 1
        body["metadata"] = {
            **body["metadata"],
            "namespace": key[1],
            "uid": f"u{self._made}",
            "creationTimestamp": text(self._clock()),
            "managedFields": [{"manager": manager}],
        }
        body = self.admission(key[0], body)
        if key[0] not in _WITHOUT_GENERATION:
            body["metadata"]["generation"] = 1
        body.setdefault("spec", {})
        return self._store(key, body, "ADDED")

    def _replace(self, key: Key, known: Body, wanted: Body, manager: str, *, subresource: str = "") -> Body:
        meta = {
            **wanted["metadata"],
            **{
                name: known["metadata"][name]
                for name in ("uid", "creationTimestamp", "resourceVersion", "managedFields", "generation")
                if name in known["metadata"]
            },
        }
        wanted = {**wanted, "metadata": meta}
        if wanted == known:
            return known
        if "generation" in meta and wanted.get("spec") != known.get("spec"):
            meta["generation"] += 1
        entry = {"manager": manager, **({"subresource": subresource} if subresource else {})}
        if manager and entry not in meta["managedFields"]:
            meta["managedFields"] = [*meta["managedFields"], entry]
        return self._store(key, wanted, "MODIFIED")

    def _store(self, key: Key, body: Body, kind: str) -> Body:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = body
        self._note(key, kind, body, body)
        return body

    def _remove(self, key: Key) -> None:
        self.version += 1
        known = self.objects.pop(key)
        for applied in [one for one in self._applied if one[0] == key]:
            del self._applied[applied]
        last = {**known, "metadata": {**known["metadata"], "resourceVersion": str(self.version)}}
        self._note(key, "DELETED", last, None)

    def _note(self, key: Key, kind: str, body: Body, state: Body | None) -> None:
        self.states.setdefault(key, []).append((self.version, state))
        self._known.setdefault(key[0], set()).add(key)
        event = Event(self.version, kind, key[0], body)
        self.history.append(event)
        self._tell(event)

    @staticmethod
    def _check(plural: str, known: Body, wanted: Body) -> None:
        """Refuse what the API server would not let change."""
        mutable = _MUTABLE.get(plural)
        if mutable is None:
            return
        before, after = known.get("spec", {}), wanted.get("spec", {})
        for name in before.keys() | after.keys():
            if name not in mutable and before.get(name) != after.get(name):
                raise ApiError(422, "Invalid", f"spec.{name}: Invalid value: field is immutable")


def text(moment: datetime.datetime) -> str:
    """As Kubernetes writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def of_job(body: Mapping[str, Any]) -> str:
    """The job whose label an object bears, or ""."""
    found: str = (body["metadata"].get("labels") or {}).get(JOB_LABEL, "")
    return found


def _merged(known: Any, manifest: Any) -> Any:
    if not isinstance(known, dict) or not isinstance(manifest, dict):
        return manifest
    result = dict(known)
    for name, value in manifest.items():
        result[name] = _merged(known[name], value) if name in known else value
    return result


def _without(known: Any, before: Any, manifest: Any) -> Any:
    """`known` less what was applied before and is not any more."""
    if not (isinstance(known, dict) and isinstance(before, dict) and isinstance(manifest, dict)):
        return known
    result = {}
    for name, value in known.items():
        if name in before and name not in manifest:
            continue
        result[name] = _without(value, before[name], manifest[name]) if name in before else value
    return result


def _merge_patch(into: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(into) if isinstance(into, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merge_patch(result.get(name), value)
    return result
