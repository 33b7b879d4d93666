"""kopf: it watches TrainingJobs and tells the cache. It writes nothing: no annotation, no finalizer, no Event."""

from __future__ import annotations

from typing import Any

import kopf

from tablebay.operator.jobcache import JobCache


def registry(jobs: JobCache) -> kopf.OperatorRegistry:
    """The handlers."""
    result = kopf.OperatorRegistry()

    @kopf.on.login(registry=result)  # type: ignore[untyped-decorator,unused-ignore]
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event("tablebay.dev", "v1alpha1", "trainingjobs", registry=result)  # type: ignore[untyped-decorator,unused-ignore]
    async def seen(type: str | None, body: Any, **_: Any) -> None:
        jobs.event(type, {name: body[name] for name in body})

    return result


def settings() -> kopf.OperatorSettings:
    """kopf's settings for a watch, and nothing else."""
    result = kopf.OperatorSettings()
    result.peering.standalone = True
    # Neither CRDs nor namespaces are watched: the operator has no right to.
    result.scanning.disabled = True
    result.posting.enabled = False
    result.watching.server_timeout = 300
    result.watching.client_timeout = 330
    result.watching.connect_timeout = 10
    result.watching.inactivity_timeout = 70
    result.networking.request_timeout = 30
    result.networking.connect_timeout = 5
    result.networking.error_backoffs = [1, 2, 3, 5, 8]
    result.queueing.worker_limit = None
    result.queueing.idle_timeout = 5
    result.process.ultimate_exiting_timeout = 25
    return result
