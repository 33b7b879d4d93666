"""A container of the job file as a command and variables of this machine, and what only a cluster gives."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from tablebay.client.errors import JobInvalid
from tablebay.client.job import Container, PodTemplate, TrainingJob

SERVER_CONTAINER = "server"
# Each starts a pool of as many threads as there are cores, in every worker, unless told otherwise.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
# Kubernetes' own form: $(NAME), and $$ for a dollar sign that begins none.
_REFERENCE = re.compile(r"\$(?:\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")
_PYTHONS = frozenset({"python", "python3"})
# What a local run takes from a container; `name` and `env` in part.
_USED_OF_CONTAINER = frozenset({"name", "command", "args", "env"})


def check(job: TrainingJob) -> None:
    """Raises JobInvalid for a job that only a cluster can run."""
    container = job.spec.workers.container
    if not container.command:
        problem = (
            f"spec.workers.template.spec.containers[{container.name}].command: a required field is missing "
            "for a local run, which has no image to take it from; wanted a command such as [python, train.py]"
        )
        raise JobInvalid([problem])


def command(container: Container, arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The container's command and args, then `arguments`; `python` is this Python."""
    words = [expand(word, environment) for word in (*container.command, *container.args)]
    if words[0] in _PYTHONS:
        words[0] = sys.executable
    return [*words, *arguments]


def variables(container: Container | None, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` and the container's own variables, in which $(NAME) stands for those before."""
    result = dict(environment)
    for variable in container.env if container is not None else ():
        if variable.value_from is None:
            result[variable.name] = expand(variable.value or "", result)
    return result


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`text` with each $(NAME) replaced, as Kubernetes does it: an unknown name stays as it is."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else environment.get(name, match[0])

    return _REFERENCE.sub(value, text)


def thread_limits(workers: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Shares the cores out among the workers, but for what `environment` sets itself."""
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    return {name: str(share) for name in THREAD_VARIABLES if name not in environment}


def server_container(job: TrainingJob) -> Container | None:
    """The servers' container that the job file describes, if it does."""
    template = job.spec.servers.template
    containers = template.spec.containers if template is not None else []
    named = [container for container in containers if container.name == SERVER_CONTAINER]
    return named[0] if named else containers[0] if len(containers) == 1 else None


def cluster_only(job: TrainingJob) -> list[str]:
    """The fields that this job sets and a local run does without, by their paths."""
    spec = job.spec
    found = [f"metadata.{name}" for name in _set(job.metadata) if name == "namespace"]
    found += ["spec.image"] if spec.image else []
    found += ["spec.servers.image"] if spec.servers.image else []
    found += [
        f"spec.servers.{name}"
        for name in _set(spec.servers)
        if name in ("storage", "onFinish", "podDisruptionBudget")
    ]
    found += [f"spec.workers.{name}" for name in _set(spec.workers) if name in ("minReplicas", "maxReplicas")]
    found += [
        f"spec.runPolicy.{name}"
        for name in _set(spec.run_policy)
        if name in ("ttlSecondsAfterFinished", "cleanPolicy", "preRunningDeadlineSeconds")
    ]
    # There is neither a pod nor a reason here.
    found += [
        f"spec.runPolicy.failurePolicy.rules[{rule.name}]"
        for rule in spec.run_policy.failure_policy.rules
        if rule.on_exit_codes is None
    ]
    found += [f"spec.scheduling.{name}" for name in _set(spec.scheduling)]
    found += [f"spec.monitoring.{name}" for name in _set(spec.monitoring)]
    found += [f"spec.network.{name}" for name in _set(spec.network)]
    found += ["spec.suspend"] if spec.suspend else []
    if spec.checkpoint is not None:
        found += [f"spec.checkpoint.{name}" for name in _set(spec.checkpoint) if name in ("claim", "when")]
    found += _of_template("spec.servers.template", spec.servers.template, server_container(job), {"env"})
    return found + _of_template(
        "spec.workers.template", spec.workers.template, spec.workers.container, _USED_OF_CONTAINER
    )


def _of_template(
    path: str, template: PodTemplate | None, used: Container | None, fields: frozenset[str] | set[str]
) -> list[str]:
    if template is None:
        return []
    found = [f"{path}.metadata"] if template.metadata else []
    found += [f"{path}.spec.{name}" for name in _set(template.spec) if name != "containers"]
    for container in template.spec.containers:
        where = f"{path}.spec.containers[{container.name}]"
        if container is not used:
            found.append(where)
            continue
        found += [f"{where}.{name}" for name in _set(container) if name not in {"name", *fields}]
        found += [f"{where}.env[{one.name}].valueFrom" for one in container.env if one.value_from is not None]
    return found


def _set(model: BaseModel) -> list[str]:
    """The YAML names of the fields that were given a value other than nothing."""
    given = model.model_dump(by_alias=True, exclude_unset=True)
    return [name for name, value in given.items() if value not in (None, "", [], {})]
