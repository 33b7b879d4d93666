"""Compares what the operator may do with what it has done, by the audit logs of the clusters of a whole run.

    python tests/e2e/rights_used.py AUDIT_LOG…        in the network of a cluster where the chart is installed

Ends with 1 and a line for each right that nothing has used: one that nobody needs is to go from the role.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from e2e.install import RELEASE
from e2e.kube import get

# A verb, and a resource of a group: ("patch", "statefulsets.apps").
Right = tuple[str, str]
# What no test does, and why the right is needed.
NOT_TRIED: dict[Right, str] = {
    ("delete", "pods"): "those that never ran and cannot: test_f29_servers_that_never_ran_are_made_anew_...",
}


def granted(system: str) -> set[Right]:
    """By the role of the jobs' namespaces and that of the operator's own."""
    found: set[Right] = set()
    for kind, name in (("clusterrole", f"{RELEASE}-operator"), ("role", f"{RELEASE}-operator-lease")):
        role = get(kind, name, system)
        assert role is not None, f"no {kind} {name}"
        for rule in role["rules"]:
            for resource in rule["resources"]:
                found |= {
                    (verb, _named(resource, group)) for group in rule["apiGroups"] for verb in rule["verbs"]
                }
    return found


def used(lines: Iterable[str], account: str) -> Iterator[Right]:
    """The rights that an account's requests have needed, those that were refused left out."""
    for line in lines:
        event = json.loads(line)
        code = event.get("responseStatus", {}).get("code", 0)
        if event["user"]["username"] != account or "objectRef" not in event or code in (401, 403):
            continue
        about = event["objectRef"]
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        named = _named(resource, about.get("apiGroup", ""))
        yield event["verb"], named
        # An apply of what is not there yet is let through as both.
        if event["verb"] == "patch" and code == 201:
            yield "create", named


def _named(resource: str, group: str) -> str:
    kind, slash, part = resource.partition("/")
    return f"{kind}.{group}{slash}{part}" if group else resource


def main(logs: list[str]) -> int:
    """0 if each right was used, or has a reason here."""
    system = os.environ["E2E_NAMESPACE"]
    rights = granted(system)
    seen: set[Right] = set()
    for log in logs:
        with open(log) as lines:
            seen |= set(used(lines, f"system:serviceaccount:{system}:{RELEASE}-operator"))
    unused = sorted(rights - seen - NOT_TRIED.keys(), key=lambda right: right[::-1])
    print(f"the operator has {len(rights)} rights: {len(rights & seen)} used, {len(NOT_TRIED)} not tried")
    for verb, resource in unused:
        print(f"no test has needed: {verb} {resource}")
    for verb, resource in sorted(NOT_TRIED.keys() & seen):
        print(f"listed as not tried, and used: {verb} {resource}")
    return 1 if unused or NOT_TRIED.keys() & seen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
