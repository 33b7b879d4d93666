"""What a local run does when a process ends: pure, so that each rule is a test."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Literal

from tablebay.client.environment import NO_CHECKPOINT_EXIT
from tablebay.client.policies import Died, FailurePolicy

BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 5.0
# A server that cannot restore its rows ends each time before it is ready.
SERVER_DEATHS_MAX = 3
_SAID_CHARACTERS_MAX = 300


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that ended. code: its exit code, or the signal's number below 0. said: its last line, or ""."""

    role: Literal["server", "worker"]
    number: int
    code: int
    log: str
    said: str = ""

    @property
    def name(self) -> str:
        """`worker 1`."""
        return f"{self.role} {self.number}"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where the run stands, the process that ended no longer counted.

    restarts: of all workers so far, or within the policy's window. restarts_of_rank: of the worker that ended.
    workers_left: not yet done. policy: rules for failures. success: when the job is done.
    durable: the servers make checkpoints. server_deaths: of the server that ended, since it was last ready.
    """

    durable: bool = False
    server_deaths: int = 0
    restarts: int
    restarts_max: int
    restarts_of_rank: int
    workers_left: int
    policy: FailurePolicy = field(default_factory=FailurePolicy)
    success: Literal["All", "Any", "Index0"] = "All"


@dataclass(frozen=True)
class Wait:
    """Others still train."""


@dataclass(frozen=True)
class Restart:
    """Start the worker of the same rank, or the same server, again after so many seconds. ignored: not counted."""

    after_s: float
    ignored: bool = False


@dataclass(frozen=True)
class Finish:
    """Every worker is done."""


@dataclass(frozen=True)
class Fail:
    """The job fails; the reason is one line."""

    reason: str


Action = Wait | Restart | Finish | Fail


def decide(ended: Ended, standing: Standing) -> Action:
    """What to do now that this process has ended, while the servers are still wanted."""
    rule = (
        standing.policy.first(Died(role=ended.role, exit_codes=[_exit_code(ended)])) if ended.code else None
    )
    if rule is not None and rule.action == "FailJob":
        return Fail(
            f"rule {rule.name}: {ended.name} {how(ended.code)}{_last_words(ended)}; its log is {ended.log}"
        )
    if ended.role == "server" and standing.durable and ended.code == NO_CHECKPOINT_EXIT:
        return Fail(cannot_restore(ended))
    if ended.role == "server" and standing.durable:
        if standing.server_deaths <= SERVER_DEATHS_MAX:
            return Restart(_backoff_s(standing.server_deaths))
        return Fail(
            f"{ended.name} {how(ended.code)}{_last_words(ended)}, the {standing.server_deaths}th time before it "
            f"was ready again; its log is {ended.log}"
        )
    if ended.role == "server":
        return Fail(
            f"{ended.name} {how(ended.code)}{_last_words(ended)}; without checkpoints its rows are lost, "
            f"so the job cannot go on; its log is {ended.log}"
        )
    if ended.code == 0:
        enough = standing.success == "Any" or (standing.success == "Index0" and ended.number == 0)
        return Finish() if enough or not standing.workers_left else Wait()
    if rule is not None and rule.action == "Ignore":
        return Restart(_backoff_s(standing.restarts_of_rank), ignored=True)
    if standing.restarts < standing.restarts_max:
        own = standing.policy.backoff
        return Restart(
            _backoff_s(standing.restarts_of_rank) if own is None else own.delay_s(standing.restarts + 1)
        )
    return Fail(
        f"{ended.name} {how(ended.code)}{_last_words(ended)} and no restart is left "
        f"({standing.restarts} of {standing.restarts_max} used); its log is {ended.log}"
    )


def _exit_code(ended: Ended) -> int:
    """As Kubernetes has it: a signal is 128 and its number."""
    return ended.code if ended.code > 0 else 128 - ended.code


def cannot_restore(ended: Ended) -> str:
    """Of a server that has ended with NO_CHECKPOINT_EXIT: one line."""
    return (
        f"{ended.name} cannot use its checkpoints{_last_words(ended)}, so the job cannot go on; "
        f"its log is {ended.log}"
    )


def _backoff_s(times: int) -> float:
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * float(2 ** min(times, 10)))


def _last_words(ended: Ended) -> str:
    words = ended.said.strip()[:_SAID_CHARACTERS_MAX]
    # What a signal kills says nothing of why.
    return f" ({words})" if words and ended.code > 0 else ""


def how(code: int) -> str:
    """`exited with code 3` or `was killed by SIGKILL`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
