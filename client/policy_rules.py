"""The CRD's rules of `runPolicy`: what a failure rule says together, and what of it never changes."""

from __future__ import annotations

from tablebay.client.cel import Schema, put, rule


def _of(side: str, *path: str) -> str:
    """CEL: whether a path below `self` or `oldSelf` is there."""
    return " && ".join(f"has({'.'.join((side, *path[: length + 1]))})" for length in range(len(path)))


def _fixed(*path: str, words: str) -> Schema:
    """A rule: what stands at a path never changes, nor comes or goes, though what is above it may."""
    name = ".".join(path)
    here, there = _of("self", *path), _of("oldSelf", *path)
    return rule(
        f"({here}) == ({there}) && (!({here}) || self.{name} == oldSelf.{name})",
        f"{words} cannot change in a job that exists; undo the change, or delete the job and make it anew",
        field=f".{path[0]}",
        reason="FieldValueForbidden",
    )


def add_policy_rules(spec: Schema) -> None:
    """Put them into the schema of `spec`."""
    policy = spec["properties"]["runPolicy"]["properties"]["failurePolicy"]
    rules = policy["properties"]["rules"]
    rules |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
    one = rules["items"]
    put(
        one,
        [
            rule(
                "[has(self.onExitCodes), has(self.onPodConditions), has(self.onReasons)].filter(x, x).size() == 1",
                "",
                says="'rule ' + self.name + ': wanted exactly one of onExitCodes, onPodConditions and onReasons'",
            ),
            *(
                rule(
                    f"self.action != '{action}' || (has(self.target) && self.target == '{target}')",
                    "",
                    says=f"'rule ' + self.name + ': found action {action} beside target ' + "
                    f"(has(self.target) ? self.target : 'Any') + ', wanted {target}'",
                    field=".target",
                )
                for action, target in (("RestartServer", "Servers"), ("RestartWorker", "Workers"))
            ),
        ],
    )
    for values in (one["properties"]["onExitCodes"]["properties"]["values"], one["properties"]["onReasons"]):
        values["x-kubernetes-list-type"] = "set"
    backoff = policy["properties"]["backoff"]
    put(
        backoff,
        [
            rule(
                "(has(self.initialSeconds) ? self.initialSeconds : 10) <= "
                "(has(self.maxSeconds) ? self.maxSeconds : 600)",
                "initialSeconds is above maxSeconds; wanted at most that",
                field=".initialSeconds",
            )
        ],
    )
    window = ("runPolicy", "failurePolicy", "windowSeconds")
    given = _of("self", "runPolicy", "failurePolicy", "rules")
    put(
        spec,
        [
            rule(
                "has(self.checkpoint) || !has(self.servers.podDisruptionBudget) || "
                "self.servers.podDisruptionBudget.maxUnavailable == 0",
                "found servers.podDisruptionBudget.maxUnavailable above 0 without checkpoint: the eviction of a server "
                "would end the job; wanted 0, or a checkpoint",
                field=".servers",
            ),
            _fixed("runPolicy", "failurePolicy", "rules", words="failurePolicy.rules"),
            _fixed("runPolicy", "successPolicy", words="successPolicy"),
            rule(
                f"({_of('self', *window)}) == ({_of('oldSelf', *window)})",
                "failurePolicy.windowSeconds cannot be added to a job that exists, nor taken away",
                field=".runPolicy",
                reason="FieldValueForbidden",
            ),
            rule(
                f"has(self.checkpoint) || !({given}) || "
                "!self.runPolicy.failurePolicy.rules.exists(r, r.action == 'RestartServer')",
                "found action RestartServer in failurePolicy.rules without checkpoint, and so without the server's "
                "rows; wanted both or neither",
                field=".runPolicy",
            ),
        ],
    )
