"""What a job's failure policy says of the pods that failed, where Kubernetes does not judge them itself: pure."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from tablebay.client.policies import Died, FailureRule
from tablebay.operator.native_policy import judged_here
from tablebay.operator.projections import Ended, Pod
from tablebay.operator.world import World, how_it_ended, moment


@dataclass(frozen=True)
class Failure:
    """A pod that failed, or a server's process. rule: which it meets first, if any."""

    pod: Pod
    ended: Ended | None
    rule: FailureRule | None

    @property
    def words(self) -> str:
        """For a message."""
        role = "worker" if self.pod.role == "worker" else "server"
        how = f"its process {how_it_ended(self.ended)}" if self.ended else f"its phase is {self.pod.phase}"
        named = f"rule {self.rule.name}: " if self.rule is not None else ""
        return f"{named}{role} pod {self.pod.name}: {how}"


@dataclass(frozen=True)
class Budget:
    """Restarts that count, and in how many seconds the first of them counts no more; None where none ever does."""

    used: int
    eases_s: float | None


def worker_failures(world: World) -> list[Failure]:
    """The workers' pods that failed, but for those that the cluster took away without a rule about it."""
    policy = world.job.model.spec.run_policy.failure_policy
    found = []
    for pod in world.workers:
        if pod.phase != "Failed" or pod.deleting:
            continue
        ends = [one.ended for one in pod.containers if one.ended is not None and one.ended.exit_code]
        rule = policy.first(_died(pod, ends))
        if rule is None and pod.conditions.get("DisruptionTarget") == "True":
            continue
        found.append(Failure(pod, ends[0] if ends else None, rule))
    return found


def server_failures(world: World) -> list[Failure]:
    """The processes of servers that ended, the present and the one before, where a rule is about them."""
    policy = world.job.model.spec.run_policy.failure_policy
    found = []
    for pod in world.servers:
        if pod.deleting:
            continue
        for container in pod.containers:
            for ended in (container.ended_before, container.ended):
                if ended is not None and ended.exit_code:
                    rule = policy.first(_died(pod, [ended]))
                    if rule is not None:
                        found.append(Failure(pod, ended, rule))
    return found


def _died(pod: Pod, ends: Sequence[Ended]) -> Died:
    reasons = [one.reason for one in ends if one.reason]
    return Died(
        role="worker" if pod.role == "worker" else "server",
        exit_codes=[one.exit_code for one in ends],
        reasons=[*reasons, pod.reason] if pod.reason else reasons,
        conditions=pod.conditions,
    )


def rule_of(world: World, pod: Pod, ended: Ended) -> str:
    """The name of the rule that a container's end meets first, or ""."""
    rule = world.job.model.spec.run_policy.failure_policy.first(
        _died(pod, [ended] if ended.exit_code else [])
    )
    return rule.name if rule is not None else ""


def budget(world: World, now: datetime.datetime) -> Budget:
    """The restarts that count now, by the failed pods that are there."""
    window_s = world.job.model.spec.run_policy.failure_policy.window_seconds
    left: list[float] = []
    for failure in worker_failures(world):
        if failure.rule is not None and failure.rule.action == "Ignore":
            continue
        finished = failure.ended.finished if failure.ended is not None else ""
        age_s = max(0.0, (now - moment(finished, now)).total_seconds())
        if window_s is None or age_s < window_s:
            left.append(float("inf") if window_s is None else window_s - age_s)
    eases_s = min(left, default=float("inf"))
    return Budget(len(left), None if eases_s == float("inf") else eases_s)


def newest_counted(world: World) -> str:
    """When the last worker failed whose failure counts; "" if none did."""
    return max(
        (
            failure.ended.finished
            for failure in worker_failures(world)
            if failure.ended is not None and (failure.rule is None or failure.rule.action != "Ignore")
        ),
        default="",
    )


def fatal(world: World) -> Failure | None:
    """A failure of which a rule says that it is the job's, as far as Kubernetes does not see to that itself."""
    policy = world.job.model.spec.run_policy.failure_policy
    failures = server_failures(world)
    if judged_here(policy):
        failures += worker_failures(world)
    return next((one for one in failures if one.rule is not None and one.rule.action == "FailJob"), None)


def fatal_of_workers(world: World) -> Failure | None:
    """The worker's failure for which Kubernetes failed the Job by a rule; None where its pod is gone."""
    failures = worker_failures(world)
    return next((one for one in failures if one.rule is not None and one.rule.action == "FailJob"), None)
