"""What mutual TLS adds to a job's pods: the Secrets' names, and a container that hands each pod its own pair alone.

Why it is so: docs/decisions/0013-certificates-of-pods.md.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tablebay.client import environment as names
from tablebay.client.own_certificate import pair_files

if TYPE_CHECKING:
    from tablebay.operator.manifests import JobObject

# A Secret holds at most 1 MiB; a pair and its names take less than 2 KiB.
PAIRS_PER_SECRET = 500

CONTAINER = "tablebay-certificate"
PAIRS_VOLUME, PAIRS_FOLDER = "tablebay-certificates", "/run/tablebay-certificates"
OWN_VOLUME, OWN_FOLDER = "tablebay-certificate", "/run/tablebay-tls"
TLS_DIR = f"{OWN_FOLDER}/own"
_COMMAND = "tablebay-own-certificate"
# Another one than any image's, so that containers that share their processes cannot look into this one.
_USER = 65531
# A Python that waits.
_RESOURCES = {"requests": {"cpu": "10m", "memory": "24Mi"}, "limits": {"memory": "64Mi"}}

__all__ = ["add", "authority_secret", "pair_files", "pair_secrets", "server_host_names"]


def authority_secret(job: JobObject) -> str:
    """Name of the Secret with the job's authority."""
    return f"{job.name}-authority"


def pair_secrets(job: JobObject, role: str) -> list[str]:
    """Names of the Secrets with the pairs of a role, each of PAIRS_PER_SECRET processes."""
    return [
        f"{job.name}-{role}-tls-{number}" for number in range(-(-processes(job, role) // PAIRS_PER_SECRET))
    ]


def processes(job: JobObject, role: str) -> int:
    """How many of a role there may be at most."""
    spec = job.model.spec
    return spec.servers.replicas if role == "server" else spec.workers.max_replicas or spec.workers.replicas


def server_host_names(job: JobObject, index: int) -> tuple[str, ...]:
    """Under which a server is spoken to: by workers, by other servers, by the operator."""
    pod, service = f"{job.servers_name}-{index}", f"{job.name}-servers"
    return (
        f"{pod}.{service}",
        f"{pod}.{service}.{job.namespace}",
        f"{pod}.{service}.{job.namespace}.svc",
    )


def add(
    job: JobObject, role: str, pod: dict[str, Any], container: dict[str, Any], image: str, pull_policy: str
) -> None:
    """Give a template that has been copied its certificate. image: has the command in it."""
    variable = names.INDEX if role == "server" else names.RANK
    (index,) = (one for one in container["env"] if one["name"] == variable and "valueFrom" in one)
    containers: list[dict[str, Any]] = pod.setdefault("initContainers", [])
    # What a template says of this container itself, such as its resources, holds.
    own = next((one for one in containers if one["name"] == CONTAINER), None)
    if own is None:
        own = {"name": CONTAINER}
    else:
        containers.remove(own)
    containers.insert(0, own)
    own.setdefault("image", image)
    own.setdefault("imagePullPolicy", pull_policy)
    own.setdefault("resources", copy.deepcopy(_RESOURCES))
    own |= {
        "command": [_COMMAND],
        "args": ["--pairs", PAIRS_FOLDER, "--index", f"$({variable})", "--to", TLS_DIR],
        "env": [copy.deepcopy(index)],
        # From the start of the pod to its end, beside the others, which begin once the pair is there.
        "restartPolicy": "Always",
        "lifecycle": {"postStart": {"exec": {"command": [_COMMAND, "--to", TLS_DIR, "--wait"]}}},
        "volumeMounts": [
            {"name": PAIRS_VOLUME, "mountPath": PAIRS_FOLDER, "readOnly": True},
            {"name": OWN_VOLUME, "mountPath": OWN_FOLDER},
        ],
    }
    own["securityContext"] = {"runAsUser": _USER, "readOnlyRootFilesystem": True} | (
        own.get("securityContext") or {}
    )
    container.setdefault("volumeMounts", []).append(
        {"name": OWN_VOLUME, "mountPath": OWN_FOLDER, "readOnly": True}
    )
    sources = [{"secret": {"name": name}} for name in pair_secrets(job, role)]
    pod.setdefault("volumes", []).extend(
        (
            # For the group of the pod's volumes; no other container mounts it.
            {"name": PAIRS_VOLUME, "projected": {"defaultMode": 0o440, "sources": sources}},
            # In memory: keys come to no disk.
            {"name": OWN_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        )
    )
