"""The job file's `scheduling`, `monitoring` and `network`: where pods run, who watches them, who may speak to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tablebay.client.model import MaybeObjectName, Model


def _gang(value: Any) -> Any:
    if value in ("Kubernetes", "Auto"):
        raise ValueError(
            f"found '{value}', which is not there yet; wanted None, Volcano, Coscheduling or Kueue"
        )
    return value


# A queue of Kueue's is named by a label's value.
KUEUE_QUEUE_MAX = 63


class Scheduling(Model):
    """Who places the job's pods, and which go first."""

    priority_class_name: MaybeObjectName = Field(
        default="", description="The priority class of all pods of the job."
    )
    scheduler_name: MaybeObjectName = Field(
        default="", description="The scheduler of all pods of the job; the cluster's if not given, or empty."
    )
    gang: Annotated[
        Literal["None", "Volcano", "Coscheduling", "Kueue"],
        BeforeValidator(_gang),
        Field(
            description="Whose PodGroup has the job's pods find room together, or Kueue; None if not given."
        ),
    ] = "None"
    queue: MaybeObjectName = Field(
        default="", description="Volcano's queue, its default one if not given; or Kueue's, which has none."
    )

    @model_validator(mode="after")
    def _queue_is_of_the_gang(self) -> Scheduling:
        if self.queue and self.gang not in ("Volcano", "Kueue"):
            raise ValueError(
                f"found queue {self.queue} beside gang {self.gang}; wanted gang Volcano or Kueue, or no queue"
            )
        if self.gang == "Kueue" and not 0 < len(self.queue) <= KUEUE_QUEUE_MAX:
            raise ValueError(
                f"found queue '{self.queue}' beside gang Kueue; wanted the name of a LocalQueue, at most "
                f"{KUEUE_QUEUE_MAX} characters"
            )
        return self


class Monitoring(Model):
    """How Prometheus finds the servers."""

    pod_monitor: Literal["Auto", "Enabled", "Disabled"] = Field(
        default="Auto",
        description="Whether a PodMonitor is made; Auto makes one where the cluster knows PodMonitors.",
    )


class Network(Model):
    """Who may speak with the job's pods, and how they speak with one another."""

    policy: Literal["Isolated", "Open"] = Field(
        default="Isolated",
        description="Isolated: NetworkPolicies let the job's own pods and the operator in; Isolated if not given.",
    )
    tls: Literal["Enabled", "Disabled"] = Field(
        default="Enabled",
        description="Mutual TLS with a certificate for each pod. Disabled: plain, for whoever reaches the ports.",
    )
