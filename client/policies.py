"""The job file's `runPolicy`: what may fail, how long a job may take, when it is done. Fields, and what they mean.

Pure: the operator and the local runner judge an end by the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from tablebay.client.model import SECONDS_MAX, Label, Model, wants

RULES_MAX = 16
VALUES_MAX = 64
_EVER_S = 31_536_000
BACKOFF_S_MAX = 86_400

Target = Literal["Any", "Servers", "Workers"]
Action = Literal["Ignore", "RestartWorker", "RestartServer", "FailJob"]
# As Kubernetes writes a condition's type or a reason.
_WORD = r"^[A-Za-z]([A-Za-z0-9_./-]*[A-Za-z0-9])?$"
Word = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=_WORD,
        json_schema_extra=wants("a word as Kubernetes writes it, such as DisruptionTarget or OOMKilled"),
    ),
]
ExitCode = Annotated[int, Field(ge=1, le=255)]


def _codes(values: list[int]) -> list[int]:
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"found {', '.join(repeated)} more than once, wanted each once")
    return values


class CleanPolicy(Model):
    """Which pods of the workers are deleted when the job has ended."""

    on_success: Literal["All", "Running", "None"] = Field(
        default="Running", description="Which pods of the workers are deleted when the job is complete."
    )
    on_failure: Literal["All", "Running", "None"] = Field(
        default="None", description="Which pods of the workers are deleted when the job has failed."
    )


@dataclass(frozen=True, kw_only=True)
class Died:
    """How a process, or a pod, ended. exit_codes: of its containers, but for 0. conditions: type to status."""

    role: Literal["server", "worker"]
    exit_codes: Sequence[int] = ()
    reasons: Sequence[str] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)


class OnExitCodes(Model):
    """Exit codes; a signal is 128 and its number. One of 0 is no failure."""

    operator: Literal["In", "NotIn"] = Field(description="Whether the code is one of the values, or none.")
    values: Annotated[list[ExitCode], AfterValidator(_codes), Field(min_length=1, max_length=VALUES_MAX)]


class OnPodCondition(Model):
    """A condition of a pod, such as DisruptionTarget, which Kubernetes sets on one that it takes away."""

    type: Word
    status: Literal["True", "False", "Unknown"] = "True"


class FailureRule(Model):
    """What is done about one kind of failure."""

    name: Label
    target: Target = Field(default="Any", description="Whose failures; Any if not given.")
    on_exit_codes: OnExitCodes | None = None
    on_pod_conditions: Annotated[list[OnPodCondition], Field(min_length=1, max_length=RULES_MAX)] | None = (
        None
    )
    on_reasons: (
        Annotated[
            list[Word],
            Field(
                min_length=1,
                max_length=RULES_MAX,
                description="Of a container that ended, such as OOMKilled, or of its pod, such as Evicted.",
            ),
        ]
        | None
    ) = None
    action: Action = Field(
        description="Ignore: not counted. RestartWorker: counted. RestartServer: it comes back. FailJob: the job fails."
    )

    @model_validator(mode="after")
    def _is_whole(self) -> FailureRule:
        given = [
            name
            for name, value in (
                ("onExitCodes", self.on_exit_codes),
                ("onPodConditions", self.on_pod_conditions),
                ("onReasons", self.on_reasons),
            )
            if value is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"rule {self.name}: found {' and '.join(given) or 'none of them'}, wanted exactly one of "
                "onExitCodes, onPodConditions and onReasons"
            )
        for action, target in (("RestartServer", "Servers"), ("RestartWorker", "Workers")):
            if self.action == action and self.target != target:
                raise ValueError(
                    f"rule {self.name}: found action {action} beside target {self.target}, wanted {target}"
                )
        return self

    def meets(self, died: Died) -> bool:
        """Whether this is one of the failures that the rule is about."""
        if self.target != "Any" and self.target != f"{died.role.capitalize()}s":
            return False
        if self.on_exit_codes is not None:
            values = self.on_exit_codes.values
            return any((code in values) == (self.on_exit_codes.operator == "In") for code in died.exit_codes)
        if self.on_pod_conditions is not None:
            return any(died.conditions.get(one.type) == one.status for one in self.on_pod_conditions)
        return any(reason in (self.on_reasons or ()) for reason in died.reasons)


def _rules_once(rules: list[FailureRule]) -> list[FailureRule]:
    repeated = [name for name, count in Counter(rule.name for rule in rules).items() if count > 1]
    if repeated:
        raise ValueError(f"found {', '.join(repeated)} more than once, wanted each name once")
    return rules


class Backoff(Model):
    """How long a worker that failed is not begun again: longer with each failure that counts, up to a limit."""

    initial_seconds: int = Field(
        default=10, ge=1, le=BACKOFF_S_MAX, description="After the first failure; 10 if not given."
    )
    factor: float = Field(
        default=2.0, ge=1, le=10, description="So many times as long after each further one; 2 if not given."
    )
    max_seconds: int = Field(
        default=600, ge=1, le=BACKOFF_S_MAX, description="But no longer than this; 600 if not given."
    )

    @model_validator(mode="after")
    def _begins_below_its_limit(self) -> Backoff:
        if self.initial_seconds > self.max_seconds:
            raise ValueError(
                f"found initialSeconds {self.initial_seconds} above maxSeconds {self.max_seconds}; wanted at most that"
            )
        return self

    def delay_s(self, failures: int) -> float:
        """After so many failures that count, in seconds; 0 after none."""
        if failures < 1:
            return 0.0
        try:
            return min(float(self.max_seconds), self.initial_seconds * self.factor ** (failures - 1))
        except OverflowError:
            return float(self.max_seconds)


class FailurePolicy(Model):
    """How much may go wrong before the job fails."""

    max_restarts: int = Field(
        default=3,
        ge=0,
        le=1_000_000,
        description="Restarts of workers before the job fails; 3 if not given.",
    )
    window_seconds: int | None = Field(
        default=None,
        ge=1,
        le=_EVER_S,
        description="maxRestarts is of any so many seconds; of the whole job if not given.",
    )
    backoff: Backoff | None = None
    rules: Annotated[
        list[FailureRule],
        AfterValidator(_rules_once),
        Field(
            default_factory=list,
            max_length=RULES_MAX,
            description="The first that a failure meets says what is done about it.",
        ),
    ]

    def first(self, died: Died) -> FailureRule | None:
        """The rule that says what is done about a failure."""
        return next((rule for rule in self.rules if rule.meets(died)), None)


class SuccessPolicy(Model):
    """When the job is done."""

    operator: Literal["All", "Any", "Index0"] = Field(
        description="Which workers must end well: all of them, any one, or rank 0. The others are then told to end."
    )


class RunPolicy(Model):
    """How long the job may run, and what happens at its end."""

    active_deadline_seconds: int | None = Field(
        default=None, ge=1, le=SECONDS_MAX, description="From the job's start; then it fails."
    )
    pre_running_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        le=SECONDS_MAX,
        description="Until all workers run for the first time; then the job fails. Never if not given.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None,
        ge=0,
        le=SECONDS_MAX,
        description="From the job's end; then the TrainingJob itself is deleted. Never if not given.",
    )
    clean_policy: CleanPolicy = Field(default_factory=CleanPolicy)
    failure_policy: FailurePolicy = Field(default_factory=FailurePolicy)
    success_policy: SuccessPolicy = Field(default_factory=lambda: SuccessPolicy(operator="All"))
