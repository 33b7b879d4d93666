"""The commands for jobs on a cluster, but for logs: the result to standard output, all else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from tablebay.client.cli import cluster_text
from tablebay.client.jobs import source
from tablebay.client.jobs.api import Jobs, finished_well
from tablebay.client.jobs.errors import ClusterError
from tablebay.client.jobs.model import Event, Job, Pod
from tablebay.client.jobs.watch import DELETED, LISTED


def submit(
    file: str, *, namespace: str | None, context: str | None, wait: bool, timeout: float | None, form: str
) -> None:
    """Give a job file to the cluster, and follow the job if asked to. Raises TablebayError."""
    manifest = source.read_manifest(sys.stdin.buffer) if file == "-" else source.manifest_of(file)
    jobs = Jobs(namespace, context=context)
    job, created = jobs.send(manifest)
    result = "created" if created else "unchanged"
    if form == "table":
        state = "" if created else f" ({job.state})"
        _say(f"{job.name}: {result} in namespace {job.namespace}{state}")
    if wait:
        # One that failed is an error, and standard output then has that alone.
        job = finished_well(_follow(Jobs(job.namespace, context=context), job.name, timeout))
        if form == "table":
            _say(cluster_text.line(job))
    if form != "table":
        _write({"result": result, "job": plain(job)}, form)


def _follow(jobs: Jobs, name: str, timeout: float | None) -> Job:
    """One line on standard error for each change that a reader would see."""
    said = ""
    last = jobs.get(name)
    for last in jobs.progress(name, timeout=timeout):
        line = cluster_text.line(last)
        if line != said and not last.complete:
            print(line, file=sys.stderr, flush=True)
        said = line
    return last


def get(
    name: str | None,
    *,
    namespace: str | None,
    all_namespaces: bool,
    context: str | None,
    watch: bool,
    form: str,
) -> None:
    """List jobs, or show one; with `watch`, go on with each change. Raises TablebayError."""
    jobs = Jobs(namespace, context=context)
    if watch:
        _watch(jobs, name, all_namespaces, form)
        return
    found = (jobs.get(name),) if name else jobs.list(all_namespaces=all_namespaces)
    if form != "table":
        content = [plain(job) for job in found]
        _write(content[0] if name else {"apiVersion": "v1", "kind": "List", "items": content}, form)
    elif found:
        _say(cluster_text.table(found, namespaces=all_namespaces))
    else:
        where = "any namespace" if all_namespaces else f"namespace {jobs.namespace}"
        print(f"no jobs in {where}", file=sys.stderr)


def _watch(jobs: Jobs, name: str | None, all_namespaces: bool, form: str) -> None:
    """The table as it is, then a line of it for each change, until Ctrl-C. JSON is one object a line."""
    if name:
        jobs.get(name)
    rows = cluster_text.Rows(namespaces=all_namespaces)
    if form == "table":
        _say(rows.header())
    for kind, job in jobs.changes(name, all_namespaces=all_namespaces):
        if form == "table":
            row = rows.row(job, deleted=kind == DELETED)
            if row is not None:
                _say(row)
        elif form == "json":
            _say(json.dumps({"type": "ADDED" if kind == LISTED else kind, "object": plain(job)}))
        else:
            _say("---")
            _write(plain(job), form)


def describe(name: str, *, namespace: str | None, context: str | None, form: str) -> None:
    """Show all that is known of a job. What may not be read is said, and hides nothing else."""
    jobs = Jobs(namespace, context=context)
    job = jobs.get(name)
    problems: list[str] = []
    pods: tuple[Pod, ...] = ()
    events: tuple[Event, ...] = ()
    try:
        pods = jobs.pods(name)
    except ClusterError as error:
        problems.append(str(error))
    try:
        events = jobs.events(job)
    except ClusterError as error:
        problems.append(str(error))
    if form == "table":
        _say(cluster_text.description(job, pods, events, problems))
    else:
        content = {
            "job": plain(job),
            "pods": [vars(pod) for pod in pods],
            "events": [vars(event) for event in events],
            "problems": problems,
        }
        _write(content, form)


def suspend(
    name: str, *, namespace: str | None, context: str | None, wait: bool, timeout: float | None, form: str
) -> None:
    """Suspend a job, and wait until no pod is left if asked to. Raises TablebayError."""
    job = Jobs(namespace, context=context).suspend(name, wait=wait, timeout=timeout)
    _changed(job, "suspended" if job.shows("Suspended") else "suspending", form)


def resume(
    name: str, *, namespace: str | None, context: str | None, wait: bool, timeout: float | None, form: str
) -> None:
    """Let a job go on, and wait until it trains if asked to. Raises TablebayError."""
    job = Jobs(namespace, context=context).resume(name, wait=wait, timeout=timeout)
    _changed(finished_well(job), "training" if job.shows("Ready") else "resuming", form)


def scale(
    name: str,
    workers: int,
    *,
    namespace: str | None,
    context: str | None,
    wait: bool,
    timeout: float | None,
    form: str,
) -> None:
    """Give a job another number of workers, and wait until they run if asked to. Raises TablebayError."""
    job = Jobs(namespace, context=context).scale(name, workers, wait=wait, timeout=timeout)
    shown = f"{workers} {'worker' if workers == 1 else 'workers'}"
    there = wait and not job.finished
    _changed(finished_well(job), f"scaled to {shown}" if there else f"scaling to {shown}", form)


def _changed(job: Job, result: str, form: str) -> None:
    if form == "table":
        _say(f"{job.name}: {result} in namespace {job.namespace}")
    else:
        _write({"result": result, "job": plain(job)}, form)


def delete(
    name: str, *, namespace: str | None, context: str | None, wait: bool, timeout: float | None, form: str
) -> None:
    """Delete a job, and wait for its end if asked to. Raises TablebayError."""
    jobs = Jobs(namespace, context=context)
    jobs.delete(name, wait=wait, timeout=timeout)
    result = "deleted" if wait else "deleting"
    if form == "table":
        _say(f"{name}: {result} in namespace {jobs.namespace}")
    else:
        _write({"result": result, "name": name, "namespace": jobs.namespace}, form)


def plain(job: Job) -> dict[str, Any]:
    """The job's object without what the API server alone reads in it."""
    manifest = dict(job.manifest)
    metadata = manifest.get("metadata")
    if isinstance(metadata, Mapping):
        manifest["metadata"] = {name: value for name, value in metadata.items() if name != "managedFields"}
    return manifest


def _write(content: Mapping[str, Any], form: str) -> None:
    if form == "json":
        _say(json.dumps(content, indent=2))
        return
    import yaml

    _say(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, allow_unicode=True).rstrip("\n"))


def _say(text: str) -> None:
    print(text, flush=True)
