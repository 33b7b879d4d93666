"""The job file's `scheduling`, `monitoring` and `network`: where pods run, who watches them, who may speak to them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tablebay.client.model import MaybeObjectName, Model


def _gang(value: Any) -> Any:
    if value in ("Kueue", "Kubernetes", "Auto"):
        raise ValueError(f"found '{value}', which is not there yet; wanted None, Volcano or Coscheduling")
    return value


class Scheduling(Model):
    """Who places the job's pods, and which go first."""

    priority_class_name: MaybeObjectName = Field(
        default="", description="The priority class of all pods of the job."
    )
    scheduler_name: MaybeObjectName = Field(
        default="", description="The scheduler of all pods of the job; the cluster's if not given, or empty."
    )
    gang: Annotated[
        Literal["None", "Volcano", "Coscheduling"],
        BeforeValidator(_gang),
        Field(description="Whose PodGroup has the job's pods find room together; None if not given."),
    ] = "None"
    queue: MaybeObjectName = Field(default="", description="Volcano's queue; its default one if not given.")

    @model_validator(mode="after")
    def _queue_is_volcanos(self) -> Scheduling:
        if self.queue and self.gang != "Volcano":
            raise ValueError(
                f"found queue {self.queue} beside gang {self.gang}; wanted gang Volcano, or no queue"
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
        description="Isolated: a NetworkPolicy lets the job's own pods and the operator in; Isolated if not given.",
    )
    tls: Literal["Enabled", "Disabled"] = Field(
        default="Enabled",
        description="Mutual TLS with a certificate for each pod. Disabled: plain, for whoever reaches the ports.",
    )
