"""What Kubernetes itself is told of a job's run policy: pure.

There are two ways, and a job goes one of them to its end. A plain failure policy is Kubernetes' own: the limit of
restarts is the Job's backoffLimit, and the rules are its podFailurePolicy, so both hold while the operator is away.
One that Kubernetes does not know, restarts within a window or rules by reason, is judged by the operator, from the
failed pods that are there; then the Job has no limit.
"""

from __future__ import annotations

from typing import Any

from tablebay.client.policies import FailurePolicy, FailureRule, SuccessPolicy

NO_LIMIT = 2**31 - 1
# A worker that the cluster takes away has not failed.
_TAKEN_AWAY = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
_NATIVE = {"Ignore": "Ignore", "RestartWorker": "Count", "FailJob": "FailJob"}


def judged_here(policy: FailurePolicy) -> bool:
    """Whether the operator judges, and not Kubernetes."""
    return policy.window_seconds is not None or any(
        rule.on_reasons is not None and rule.target != "Servers" for rule in policy.rules
    )


def native_rules(policy: FailurePolicy) -> list[dict[str, Any]]:
    """Of the workers' Job. The last one stands in every job, so that a rule of its own may say otherwise."""
    rules = (
        [] if judged_here(policy) else [_native(rule) for rule in policy.rules if rule.target != "Servers"]
    )
    return [*rules, _TAKEN_AWAY]


def _native(rule: FailureRule) -> dict[str, Any]:
    found: dict[str, Any] = {"action": _NATIVE[rule.action]}
    if rule.on_exit_codes is not None:
        codes = rule.on_exit_codes
        found["onExitCodes"] = {"operator": codes.operator, "values": sorted(codes.values)}
    else:
        found["onPodConditions"] = [
            {"type": one.type, "status": one.status} for one in rule.on_pod_conditions or ()
        ]
    return found


def success(policy: SuccessPolicy) -> dict[str, Any]:
    """What of the Job's spec says when it is done; without it Kubernetes waits for all."""
    rules: dict[str, dict[str, Any]] = {"Any": {"succeededCount": 1}, "Index0": {"succeededIndexes": "0"}}
    rule = rules.get(policy.operator)
    return {"successPolicy": {"rules": [rule]}} if rule else {}
