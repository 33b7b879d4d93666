"""Every field of a job that exists is set, changed, taken away and put back, on a real API server.

O4: back at the old spec all is as it was. O5: what came of a change is what a job made with it has. O6: a change that
is taken shows in the job's objects or conditions; one that is not is refused, by the field's name, and changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e.kube import kubectl, make_namespace
from e2e.walk import Field, asked_for, at, fields, items, with_value
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tablebay.operator.projections import SERVER_COUNT_ANNOTATION

JOBS = ("tablebay.dev", "v1alpha1")
# Never begun and suspended: all objects are there, and no pod.
SPEC: dict[str, Any] = {
    "suspend": True,
    "image": "localhost/tablebay:dev",
    "tables": [
        {
            "name": "fields",
            "dim": 4,
            "optimizer": {"type": "Adagrad", "learningRate": 0.05},
            "initializer": {"type": "Normal", "stddev": 0.01},
        }
    ],
    "servers": {"replicas": 2},
    "workers": {
        "replicas": 2,
        "minReplicas": 1,
        "maxReplicas": 4,
        "template": {"spec": {"containers": [{"name": "worker", "command": ["true"]}]}},
    },
    "scheduling": {},
    "checkpoint": {
        "destination": "pvc://walk/run",
        "claim": {"size": "1Mi"},
        "everySeconds": 60,
    },
}
# What shows only once something happens: the test that has it.
SHOWS_LATER = {
    "runPolicy.preRunningDeadlineSeconds": "test_a_job_that_does_not_run_in_time_fails_with_the_reason",
    "runPolicy.ttlSecondsAfterFinished": "tests/e2e/test_flights.py",
    "runPolicy.cleanPolicy.onSuccess": "tests/unit/test_operator_decide.py",
    "runPolicy.cleanPolicy.onFailure": "tests/unit/test_operator_decide.py",
    "runPolicy.failurePolicy.backoff.initialSeconds": "test_a_worker_process_killed",
    "runPolicy.failurePolicy.backoff.factor": "test_each_failure_waits_longer",
    "runPolicy.failurePolicy.backoff.maxSeconds": "test_each_failure_waits_longer",
    "network.tls": "Enabled is what is there, and another one is refused",
    "durability.mode": "it says what spec.checkpoint says",
}
# A job that is suspended has it when it goes on.
USED_LATER = {"workers.replicas"}
# Other tests: the walk's job is to stay suspended.
LEFT_OUT = {"suspend"}
# At their most these make certificates for thousands of pods.
LARGE = {"workers.replicas", "workers.maxReplicas", "servers.replicas"}


class Api:
    """Few calls, over one connection."""

    def __init__(self) -> None:
        config.load_kube_config()
        self._custom = client.CustomObjectsApi()

    def job(self, namespace: str) -> dict[str, Any]:
        """The job."""
        found: dict[str, Any] = self._custom.get_namespaced_custom_object(
            *JOBS, namespace, "trainingjobs", "walk"
        )
        return found

    def create(self, namespace: str, spec: dict[str, Any]) -> None:
        """A job with that spec."""
        body = _job("walk", spec)
        self._custom.create_namespaced_custom_object(*JOBS, namespace, "trainingjobs", body)

    def asks(self, namespace: str, spec: dict[str, Any]) -> str:
        """Why a new job with that spec would be refused, or "": nothing is made."""
        body = _job("asked", spec)
        try:
            self._custom.create_namespaced_custom_object(
                *JOBS, namespace, "trainingjobs", body, dry_run="All", field_validation="Strict"
            )
        except ApiException as error:
            if error.status not in (400, 422):
                raise
            return str(json.loads(error.body)["message"])
        return ""

    def replace(self, namespace: str, spec: dict[str, Any]) -> str:
        """Give the job another spec; "" or why it is refused."""
        body = {**self.job(namespace), "spec": spec}
        try:
            self._custom.replace_namespaced_custom_object(*JOBS, namespace, "trainingjobs", "walk", body)
        except ApiException as error:
            if error.status == 409:
                return self.replace(namespace, spec)
            if error.status != 422:
                raise
            return str(json.loads(error.body)["message"])
        return ""

    def settled(self, namespace: str) -> dict[str, Any]:
        """What the operator has made of the job, once it has looked at its newest spec: objects and conditions."""
        # What the operator was making for a job of this name when that was deleted is in the way until the cluster
        # collects it.
        deadline = time.monotonic() + 90
        while True:
            body = self.job(namespace)
            children = self._children(namespace)
            status = body.get("status") or {}
            known = {one["type"]: one for one in status.get("conditions", ())}
            if (
                status.get("observedGeneration") == body["metadata"]["generation"]
                and known.get("Suspended", {}).get("status") == "True"
                and _all_made(children, body["spec"]["servers"].get("replicas", 1))
                # Both were read between the same two writes.
                and self.job(namespace) == body
            ):
                break
            assert time.monotonic() < deadline, f"not settled: {status}"
            time.sleep(0.05)
        found: dict[str, Any] = {
            "finalizers": body["metadata"].get("finalizers"),
            "conditions": {
                one["type"]: (one["status"], one["reason"], one["message"]) for one in status["conditions"]
            },
        }
        for one in children:
            found[f"{one['kind']}/{one['metadata']['name']}"] = one.get("spec")
        return json.loads(json.dumps(found).replace(namespace, "NAMESPACE"))  # type: ignore[no-any-return]

    def put_back(self, namespace: str, before: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """Give the job its old spec again: what is there then, and what of it is not as it was before."""
        why = self.replace(namespace, SPEC)
        back = self.settled_as(namespace, before)
        return back, why or ("" if back == before else _difference(back, before))

    def settled_as(self, namespace: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """What is there as soon as it is what is wanted; what is there in the end if it never is."""
        deadline = time.monotonic() + 10
        while (found := self.settled(namespace)) != wanted and time.monotonic() < deadline:
            time.sleep(0.2)
        return found

    def _children(self, namespace: str) -> list[dict[str, Any]]:
        result = []
        for listed, kind in (
            (client.AppsV1Api().list_namespaced_stateful_set, "StatefulSet"),
            (client.BatchV1Api().list_namespaced_job, "Job"),
            (client.CoreV1Api().list_namespaced_service, "Service"),
            (client.PolicyV1Api().list_namespaced_pod_disruption_budget, "PodDisruptionBudget"),
            (client.NetworkingV1Api().list_namespaced_network_policy, "NetworkPolicy"),
        ):
            answer = json.loads(listed(namespace, _preload_content=False).data)
            result += [{**one, "kind": kind} for one in answer["items"]]
        for one in result:
            spec = one.get("spec", {})
            # What the API server, or the Job's controller, gives each object anew.
            for name in ("selector", "clusterIP", "clusterIPs", "manualSelector"):
                spec.pop(name, None)
            labels = spec.get("template", {}).get("metadata", {}).get("labels", {})
            for name in [name for name in labels if "controller-uid" in name]:
                del labels[name]
            for variable in _variables(spec):
                if variable["name"] == "TABLEBAY_GENERATION":
                    variable["value"] = "N"
        return result


def _job(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "/".join(JOBS),
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": spec,
    }


def _all_made(children: list[dict[str, Any]], servers: int) -> bool:
    """Whether nothing is still to come: the workers' Job of another number of servers goes, and is made anew."""
    if not {one["kind"] for one in children} >= {"StatefulSet", "Job", "Service", "PodDisruptionBudget"}:
        return False
    (workers,) = (one for one in children if one["kind"] == "Job")
    return workers["metadata"]["annotations"].get(SERVER_COUNT_ANNOTATION) == str(servers) and not any(
        "deletionTimestamp" in one["metadata"] for one in children
    )


def _variables(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for container in spec.get("template", {}).get("spec", {}).get("containers", ()):
        yield from container.get("env") or ()


@pytest.fixture
def api() -> Api:
    """The API server."""
    return Api()


def steps(field: Field) -> list[Any]:
    """The values that a field goes through: set, changed, at its ends, taken away."""
    before, ends = at(SPEC, field.path), () if field.name in LARGE else field.ends
    return [*(value for value in (*field.values, *ends) if value != before), None]


@pytest.fixture
def fresh(namespace: str) -> Iterator[str]:
    """A namespace for new jobs."""
    name = f"{namespace}-fresh"
    make_namespace(name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.mark.deep
def test_every_field_is_taken_or_refused_by_its_name(
    api: Api, namespace: str, fresh: str, scenario: dict[str, Any]
) -> None:
    """Whatever is done to it; what is taken shows, is what a new job would have, and is gone when it is put back."""
    api.create(namespace, SPEC)
    before = api.settled(namespace)
    problems: list[str] = []
    taken, refused = 0, 0
    # Fields that took another value, and those of which it was seen.
    other: set[str] = set()
    shown: set[str] = set()
    for field in fields():
        if field.name in LEFT_OUT:
            continue
        changes, away = [], False
        for value in steps(field):
            if value is None and at(SPEC, field.path) is None and not (changes or away):
                continue
            spec = with_value(SPEC, field.path, value)
            why = api.replace(namespace, spec)
            if why:
                refused += 1
                if str(field.path[-1]) not in why and not all(str(part) in why for part in field.path[:1]):
                    problems.append(
                        f"O6: {field.name}: {value!r} is refused, and its name is not said: {why}"
                    )
                continue
            taken += 1
            other |= {field.name} if spec != SPEC else set()
            after = api.settled(namespace)
            if after != before:
                shown.add(field.name)
                changes.append((spec, after))
            away = value in field.ends
            if away:
                # The next one is taken from there, and the way back is that of the last.
                continue
            before, why = api.put_back(namespace, before)
            problems += [f"O4: {field.name}: after {_short(value)} and back: {why}"] if why else []
        if away:
            before, why = api.put_back(namespace, before)
            problems += [f"O4: {field.name}: after {_short(field.ends[-1])} and back: {why}"] if why else []
        if field.name in other and field.name not in shown | SHOWS_LATER.keys():
            problems.append(f"O6: {field.name}: it is taken, and shows nowhere")
        for spec, after in changes[:1] if field.name not in USED_LATER else ():
            api.create(fresh, spec)
            new = api.settled_as(fresh, after)
            if new != after:
                problems.append(f"O5: {field.name}: a new job is another one: {_difference(after, new)}")
            _delete(api, fresh)
    scenario.update(fields=len(fields()), taken=taken, refused=refused)
    print(f"{len(fields())} fields: {taken} changes taken, {refused} refused")
    assert taken >= 30
    assert refused >= 100
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:40]])


def _delete(api: Api, namespace: str) -> None:
    """The job of a namespace, and its claim, so that the next one begins anew."""
    custom = client.CustomObjectsApi()
    custom.patch_namespaced_custom_object(
        *JOBS, namespace, "trainingjobs", "walk", {"metadata": {"finalizers": None}}
    )
    custom.delete_namespaced_custom_object(*JOBS, namespace, "trainingjobs", "walk")
    deadline = time.monotonic() + 60
    while api._children(namespace):
        assert time.monotonic() < deadline, "its objects do not go"
        time.sleep(0.05)


def _difference(found: Any, wanted: Any, path: str = "") -> str:
    """Where two states differ first."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                return _difference(found.get(name), wanted.get(name), f"{path}.{name}")
    return f"{path}: found {str(found)[:200]}, wanted {str(wanted)[:200]}"


@pytest.mark.deep
def test_every_fields_ends_are_taken_in_a_new_job_and_nothing_beyond_them(
    api: Api, namespace: str, scenario: dict[str, Any]
) -> None:
    """The least, the most, the longest text of each field, of list items too; what is beyond is refused by its name.

    By dry runs, which ask the API server and keep nothing."""
    problems: list[str] = []
    asked, ends = 0, 0
    for field in (*fields(), *items()):
        for value in field.ends:
            refusals = []
            for spec in asked_for(SPEC, field, value):
                asked += 1
                refusals.append(api.asks(namespace, spec))
                if not refusals[-1]:
                    break
            ends += not refusals[-1]
            if refusals[-1]:
                problems.append(f"{field.name}: {_short(value)} is refused: {refusals[0][:300]}")
        for value in field.beyond:
            spec = next(asked_for(SPEC, field, value))
            asked += 1
            why = api.asks(namespace, spec)
            name = next(str(part) for part in reversed(field.path) if isinstance(part, str))
            if name not in why:
                said = f"is refused, and its name is not said: {why[:300]}" if why else "is taken"
                problems.append(f"{field.name}: {_short(value)}, which is beyond what it may be, {said}")
    print(
        f"{len(fields())} fields and {len(items())} of list items: {ends} ends taken, {asked} jobs asked for"
    )
    scenario.update(fields=len(fields()) + len(items()), ends=ends, asked=asked)
    assert ends >= 210
    assert not problems, "\n".join([f"{len(problems)} problems", *problems[:40]])


def _short(value: Any) -> str:
    return repr(value)[:60]
