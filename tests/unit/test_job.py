"""The job file's model: what it takes, and what each bad file is told."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from tablebay.client.environment import is_identity
from tablebay.client.errors import JobInvalid
from tablebay.client.job import (
    FILE_BYTES_MAX,
    OWN_VARIABLES,
    SPEC_BYTES_MAX,
    TableDefaults,
    TrainingJob,
    load_job,
    parse_job,
)
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.quantity import parse_quantity
from tablebay.client.tables import Adagrad, Adam, Normal, TableSpec
from tablebay.ps_server.config import parser

GOOD: dict[str, Any] = {
    "apiVersion": "tablebay.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "flights"},
    "spec": {
        "image": "localhost/tablebay:dev",
        "tables": [{"name": "fields", "dim": 9}],
        "servers": {"replicas": 2},
        "workers": {
            "replicas": 2,
            "template": {"spec": {"containers": [{"name": "worker", "command": ["python", "train.py"]}]}},
        },
    },
}
CONTAINER = "spec.workers.template.spec.containers[0]"
REMOVED = object()

ALL_OPTIMIZERS = ", ".join(sorted(OPTIMIZERS))


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with the value at a dotted path (numbers are positions) set, or removed."""
    job = copy.deepcopy(GOOD)
    parts: list[Any] = [int(part) if part.isdigit() else part for part in path.split(".")]
    *parents, last = parts
    here: Any = job
    for part in parents:
        here = here[part] if isinstance(here, list) else here.setdefault(part, {})
    if value is REMOVED:
        del here[last]
    else:
        here[last] = value
    return job


def in_worker(name: str, value: Any) -> dict[str, Any]:
    """GOOD with a field of the workers' container set."""
    return changed(f"spec.workers.template.spec.containers.0.{name}", value)


def problems(job: Any) -> list[str]:
    """What is wrong with a job, one sentence each."""
    with pytest.raises(JobInvalid) as caught:
        parse_job(job)
    return list(caught.value.problems)


def file_problem(path: Path) -> str:
    """What is wrong with a file as a whole."""
    with pytest.raises(JobInvalid) as caught:
        load_job(path)
    assert str(path) in str(caught.value)
    return "\n".join(caught.value.problems)


def test_a_good_job_becomes_a_model() -> None:
    """Every field of the file is in the model, and what was left out has its default."""
    job = parse_job(GOOD)
    assert isinstance(job, TrainingJob)
    assert (job.name, job.spec.servers.replicas, job.spec.workers.replicas) == ("flights", 2, 2)
    assert job.spec.tables == [TableSpec("fields", 9)]
    assert job.spec.workers.container.command == ["python", "train.py"]
    assert job.spec.run_policy.failure_policy.max_restarts == 3
    assert job.spec.run_policy.active_deadline_seconds is None


def test_a_file_is_read_as_its_mapping_is(tmp_path: Path) -> None:
    """The YAML of a job gives the same model as the mapping."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert load_job(path) == parse_job(GOOD)


def test_table_defaults_fill_what_a_table_leaves_out() -> None:
    """A table takes each default that it does not set, whole: an optimizer is not mixed out of two."""
    job = changed(
        "spec.tableDefaults", {"dim": 4, "seed": 7, "optimizer": {"type": "Adagrad", "learningRate": 0.5}}
    )
    job["spec"]["tables"] = [{"name": "a"}, {"name": "b", "dim": 8, "optimizer": {"type": "Adam"}}]
    first, second = parse_job(job).spec.tables
    assert first == TableSpec("a", 4, optimizer=Adagrad(0.5), seed=7)
    assert second == TableSpec("b", 8, optimizer=Adam(), seed=7)


def test_table_defaults_have_the_fields_of_a_table_but_its_name() -> None:
    """The defaults' model follows the table's."""
    of_a_table = {field.name for field in fields(TableSpec)}
    assert set(TableDefaults.model_fields) == of_a_table - {"name"}


def test_the_container_named_worker_trains_among_several() -> None:
    """Beside sidecars the container named worker is the one that trains, wherever it stands."""
    containers = [{"name": "logs", "command": ["tail"]}, {"name": "worker", "command": ["python"]}]
    job = parse_job(changed("spec.workers.template.spec.containers", containers))
    assert job.spec.workers.container.command == ["python"]


def test_any_field_is_taken_below_a_pod_template() -> None:
    """What the model does not know below a template is kept for the cluster."""
    job = changed("spec.workers.template.spec.nodeSelector", {"disk": "nvme"})
    job["spec"]["workers"]["template"]["spec"]["containers"][0]["volumeMounts"] = [
        {"name": "x", "mountPath": "/x"}
    ]
    template = parse_job(job).spec.workers.template.model_dump(by_alias=True, exclude_unset=True)
    assert template == job["spec"]["workers"]["template"]


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        # Row 1: numbers out of range.
        ("spec.servers.replicas", -1, "spec.servers.replicas: found -1, wanted an integer from 1 to 1024"),
        ("spec.servers.replicas", 0, "spec.servers.replicas: found 0, wanted an integer from 1 to 1024"),
        (
            "spec.servers.replicas",
            2**31 - 1,
            "spec.servers.replicas: found 2147483647, wanted an integer from 1 to 1024",
        ),
        ("spec.workers.replicas", 0, "spec.workers.replicas: found 0, wanted an integer from 1 to 10000"),
        # Row 2: wrong types.
        (
            "spec.servers.replicas",
            "two",
            "spec.servers.replicas: found 'two', wanted an integer from 1 to 1024",
        ),
        ("spec.servers.replicas", "2", "spec.servers.replicas: found '2', wanted an integer from 1 to 1024"),
        (
            "spec.servers.replicas",
            True,
            "spec.servers.replicas: found true, wanted an integer from 1 to 1024",
        ),
        (
            "spec.servers.replicas",
            None,
            "spec.servers.replicas: found null, wanted an integer from 1 to 1024",
        ),
        ("spec.servers", [], "spec.servers: found a list of 0, wanted a mapping"),
        ("spec.tables", 3, "spec.tables: found 3, wanted a list"),
        # Row 3: unknown fields, those of later versions among them.
        ("spec.servers.replcas", 2, "spec.servers.replcas: unknown field; did you mean replicas?"),
        ("spec.worker", {"replicas": 2}, "spec.worker: unknown field; did you mean workers?"),
        ("spec.runPolicy.active_deadline_seconds", 5, "unknown field; did you mean activeDeadlineSeconds?"),
        (
            "spec.tables.0.optimizer",
            {"type": "SGD", "learning_rate": 1.0},
            "unknown field; did you mean learningRate?",
        ),
        (
            "spec.tables.0.initializer",
            {"type": "Normal", "stdev": 1.0},
            "unknown field; did you mean stddev?",
        ),
        (
            "spec.tables.0.features",
            ["a"],
            "spec.tables[0].features: unknown field; known here: name, dim, dtype",
        ),
        ("spec.elasticity", {"mode": "on"}, "spec.elasticity: unknown field"),
        ("spec.suspend", 0, "spec.suspend: found 0, wanted true or false"),
        ("spec.scheduling", {"gnag": "Volcano"}, "spec.scheduling.gnag: unknown field"),
        (
            "spec.scheduling",
            {"gang": "Kubernetes"},
            "spec.scheduling.gang: found 'Kubernetes', which is not there yet; wanted None, Volcano, Coscheduling",
        ),
        ("spec.network", {"tls": "Off"}, "spec.network.tls: found 'Off', wanted one of Enabled, Disabled"),
        (
            "spec.servers.podDisruptionBudget",
            {"maxUnavailable": 1},
            "found servers.podDisruptionBudget.maxUnavailable 1 without checkpoint",
        ),
        ("spec.workers.minReplica", 1, "spec.workers.minReplica: unknown field; did you mean minReplicas?"),
        ("spec.workers.template.sepc", {}, "spec.workers.template.sepc: unknown field; did you mean spec?"),
        ("status", {}, "status: unknown field; known here: apiVersion, kind, metadata, spec"),
        ("metadata.uid", "x", "metadata.uid: unknown field"),
        # Row 4: what must be there.
        ("spec.servers", REMOVED, "spec.servers: a required field is missing; wanted a mapping"),
        ("spec.workers", REMOVED, "spec.workers: a required field is missing; wanted a mapping"),
        (
            "spec.servers.replicas",
            REMOVED,
            "spec.servers.replicas: a required field is missing; wanted an integer",
        ),
        ("apiVersion", REMOVED, "apiVersion: a required field is missing; wanted tablebay.dev/v1alpha1"),
        (
            "apiVersion",
            "tablebay.dev/v1",
            "apiVersion: found 'tablebay.dev/v1', wanted tablebay.dev/v1alpha1",
        ),
        ("kind", "Job", "kind: found 'Job', wanted TrainingJob"),
        ("spec.workers.template", {}, "template.spec.containers is empty; wanted the container that trains"),
        # Row 5: names of which children's names are made.
        ("metadata.name", "x" * 64, "(64 characters), wanted a lower-case letter"),
        (
            "metadata.name",
            "x" * 41,
            "wanted a lower-case letter, then letters, digits and '-', no '-' at the end, at most 40",
        ),
        ("metadata.name", "Flights", "metadata.name: found 'Flights', wanted a lower-case letter"),
        ("metadata.name", "", "metadata.name: found '', wanted a lower-case letter"),
        (
            "metadata.namespace",
            "a_b",
            "metadata.namespace: found 'a_b', wanted lower-case letters, digits and '-'",
        ),
        ("metadata.labels", {"team": "a b"}, "metadata.labels.team: found 'a b', wanted letters"),
        # Row 6: names of tables.
        ("spec.tables.0.name", "Fields", "spec.tables[0].name: found 'Fields', wanted lower-case letters"),
        ("spec.tables.0.name", "a.b", "spec.tables[0].name: found 'a.b', wanted lower-case letters"),
        ("spec.tables.0.name", "x" * 64, "at most 63 characters"),
        (
            "spec.tables",
            [{"name": "a", "dim": 1}] * 2,
            "spec.tables: found a more than once, wanted each name once",
        ),
        (
            "spec.tables",
            [{"name": f"t{i}", "dim": 1} for i in range(257)],
            "spec.tables: found a list of 257, wanted at most 256",
        ),
        # Row 7: shapes and optimizers of tables.
        ("spec.tables.0.dim", 0, "spec.tables[0].dim: found 0, wanted an integer from 1 to 65536"),
        ("spec.tables.0.dim", -4, "spec.tables[0].dim: found -4, wanted an integer from 1 to 65536"),
        (
            "spec.tables.0.dim",
            10**9,
            "spec.tables[0].dim: found 1000000000, wanted an integer from 1 to 65536",
        ),
        (
            "spec.tables.0.optimizer",
            {"type": "adamm"},
            f"optimizer.type: found 'adamm', wanted one of {ALL_OPTIMIZERS}",
        ),
        (
            "spec.tables.0.optimizer",
            {"learningRate": 0.1},
            "optimizer.type: a required field is missing; wanted one of",
        ),
        ("spec.tables.0.optimizer", "Adam", "spec.tables[0].optimizer: found 'Adam', wanted a mapping"),
        (
            "spec.tables.0.optimizer",
            {"type": "SGD", "learningRate": -1},
            "learningRate: found -1, wanted a number",
        ),
        (
            "spec.tables.0.dtype",
            "float64",
            "spec.tables[0].dtype: found 'float64', wanted one of float32, bfloat16, float16, int64",
        ),
        (
            "spec.tables.0.nonFinite",
            "reject",
            "spec.tables[0].nonFinite: found 'reject', wanted one of Reject, Zero, Allow",
        ),
        (
            "spec.tables.0.optimizer",
            {"type": "Adagrad", "initialAccumulator": 0.0, "epsilon": 0.0},
            "spec.tables[0].optimizer: initialAccumulator and epsilon are both 0",
        ),
        # Row 12: images.
        ("spec.image", "", "spec.image: found '', wanted the name of an image"),
        ("spec.image", "a b", "spec.image: found 'a b', wanted the name of an image"),
        ("spec.servers.image", "a b", "spec.servers.image: found 'a b', wanted the name of an image"),
        # Row 11: sizes of volumes.
        ("spec.servers.storage", {}, "spec.servers.storage.size: a required field is missing"),
        *(
            (
                "spec.servers.storage",
                {"size": size},
                f"spec.servers.storage.size: found {size!r}, wanted a quantity above 0 such as 10Gi",
            )
            for size in ("1.5x", "1e400", "0", "-1Gi", "500m", "8Ei")
        ),
        (
            "spec.servers.storage",
            {"size": "1Gi", "storageClassName": "Fast"},
            "storageClassName: found 'Fast', wanted the name of an object",
        ),
        (
            "spec.servers.storage",
            {"size": "1Gi", "retention": {"whenDeleted": "Keep"}},
            "retention.whenDeleted: found 'Keep', wanted one of Delete, Retain",
        ),
        ("spec.servers.onFinish", "Serve", "onFinish: found 'Serve', wanted one of Delete, Retain"),
        ("spec.scheduling", {"priorityClassName": "a b"}, "priorityClassName: found 'a b', wanted the name"),
        ("spec.monitoring", {"podMonitor": True}, "found true, wanted one of Auto, Enabled, Disabled"),
        # Policies.
        (
            "spec.runPolicy",
            {"ttlSecondsAfterFinished": "7 days"},
            "ttlSecondsAfterFinished: found '7 days', wanted an integer from 0 to 2147483647",
        ),
        ("spec.runPolicy", {"ttlSecondsAfterFinished": -1}, "found -1, wanted an integer from 0"),
        (
            "spec.runPolicy",
            {"cleanPolicy": {"onSuccess": "none"}},
            "cleanPolicy.onSuccess: found 'none', wanted one of All, Running, None",
        ),
        (
            "spec.runPolicy.activeDeadlineSeconds",
            0,
            "activeDeadlineSeconds: found 0, wanted an integer from 1",
        ),
        ("spec.runPolicy.failurePolicy.maxRestarts", -1, "maxRestarts: found -1, wanted an integer from 0"),
    ],
)
def test_each_bad_field_is_named_with_what_was_found_and_wanted(path: str, value: Any, wanted: str) -> None:
    """A bad field is told by its path, the value found and the value wanted, and nothing else is told."""
    found = problems(changed(path, value))
    assert len(found) == 1, found
    assert wanted in found[0]


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        # Row 11: quantities.
        (
            "resources",
            {"requests": {"cpu": "1.5x"}},
            f"{CONTAINER}.resources.requests.cpu: found '1.5x', wanted a quantity",
        ),
        (
            "resources",
            {"limits": {"memory": "1e400"}},
            f"{CONTAINER}.resources.limits.memory: found '1e400', wanted a quantity",
        ),
        (
            "resources",
            {"limits": {"memory": "-1Gi"}},
            f"{CONTAINER}.resources.limits.memory: found '-1Gi', wanted a quantity",
        ),
        (
            "resources",
            {"requests": {"memory": "2Gi"}, "limits": {"memory": "1536Mi"}},
            f"{CONTAINER}.resources: found requests.memory 2Gi above limits.memory 1536Mi",
        ),
        # Row 12, in the template.
        ("image", "", f"{CONTAINER}.image: found '', wanted the name of an image"),
        # Row 14: variables that tell a worker who it is.
        (
            "env",
            [{"name": "TABLEBAY_RANK", "value": "0"}],
            f"{CONTAINER}.env[0]: found TABLEBAY_RANK, which Tablebay sets",
        ),
        (
            "env",
            [{"name": "WORLD_SIZE", "value": "1"}],
            f"{CONTAINER}.env[0]: found WORLD_SIZE, which Tablebay sets",
        ),
        ("env", [{"name": "A", "value": 1}], f"{CONTAINER}.env[0].value: found 1, wanted a string"),
        ("env", [{"name": "A B", "value": "1"}], f"{CONTAINER}.env[0].name: found 'A B', wanted the name of"),
        (
            "env",
            [{"name": "A"}, {"name": "A"}],
            f"{CONTAINER}.env: found A more than once, wanted each name once",
        ),
        (
            "env",
            [{"name": "A", "value": "1", "valueFrom": {}}],
            f"{CONTAINER}.env[0]: variable A has both value and valueFrom",
        ),
        ("command", "python train.py", f"{CONTAINER}.command: found 'python train.py', wanted a list"),
        ("command", ["a\0b"], f"{CONTAINER}.command[0]: found a NUL character"),
        ("args", [1], f"{CONTAINER}.args[0]: found 1, wanted a string"),
        ("name", "Worker", f"{CONTAINER}.name: found 'Worker', wanted lower-case letters"),
    ],
)
def test_each_bad_field_of_the_container_is_named(field: str, value: Any, wanted: str) -> None:
    """What Tablebay reads of a pod template is checked like the rest of the file."""
    found = problems(in_worker(field, value))
    assert len(found) == 1, found
    assert wanted in found[0]


POD = "spec.workers.template.spec"


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("hostNetwork", True, f"{POD}.hostNetwork: found true, wanted false, or no such field"),
        ("hostPID", True, f"{POD}.hostPID: found true, wanted false, or no such field"),
        ("hostIPC", True, f"{POD}.hostIPC: found true, wanted false, or no such field"),
        ("serviceAccountName", "admin", f"{POD}.serviceAccountName: found 'admin', wanted no such field"),
        ("serviceAccount", "admin", f"{POD}.serviceAccount: found 'admin', wanted no such field"),
        (
            "volumes",
            [{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/"}}],
            f"{POD}.volumes[1].hostPath: found a mapping, wanted another kind of volume",
        ),
        (
            "securityContext",
            {"runAsUser": 0},
            f"{POD}.securityContext.runAsUser: found 0, wanted the number of a user other than root",
        ),
        (
            "securityContext",
            {"runAsNonRoot": False},
            f"{POD}.securityContext.runAsNonRoot: found false, wanted true",
        ),
        (
            "containers.0.securityContext",
            {"privileged": True},
            f"{CONTAINER}.securityContext.privileged: found true, wanted false",
        ),
        (
            "containers.0.securityContext",
            {"allowPrivilegeEscalation": True},
            f"{CONTAINER}.securityContext.allowPrivilegeEscalation: found true, wanted false",
        ),
        (
            "containers.0.securityContext",
            {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}},
            f"{CONTAINER}.securityContext.capabilities.add: found a list of 1, wanted at most 0",
        ),
        (
            "containers.0.securityContext",
            {"runAsUser": 0},
            f"{CONTAINER}.securityContext.runAsUser: found 0, wanted the number of a user",
        ),
        (
            "containers.0.ports",
            [{"containerPort": 1, "hostPort": 1}],
            f"{CONTAINER}.ports[0].hostPort: found 1, wanted no such field",
        ),
        (
            "initContainers",
            [{"name": "first", "securityContext": {"privileged": True}}],
            f"{POD}.initContainers[0].securityContext.privileged: found true, wanted false",
        ),
    ],
)
def test_a_template_gives_no_power_over_the_node(field: str, value: Any, wanted: str) -> None:
    """What would take a pod out of its bounds is refused by its path, for workers and for servers (row 13)."""
    found = problems(changed(f"{POD}.{field}", value))
    assert len(found) == 1, found
    assert wanted in found[0]
    servers = changed(f"{POD}.{field}", value)["spec"]["workers"]["template"]
    found = problems(changed("spec.servers.template", servers))
    assert len(found) == 1, found
    assert wanted.replace("workers", "servers", 1) in found[0]


def test_what_bounds_a_pod_more_is_taken() -> None:
    """A template may say itself what Tablebay wants of every pod."""
    security = {"runAsUser": 1000, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    job = changed(f"{POD}.securityContext", security)
    pod = job["spec"]["workers"]["template"]["spec"]
    pod |= {"hostNetwork": False, "hostPID": False, "volumes": [{"name": "a", "emptyDir": {}}]}
    pod["containers"][0] |= {
        "securityContext": {
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "ports": [{"containerPort": 8000}],
    }
    template = parse_job(job).spec.workers.template.model_dump(by_alias=True, exclude_unset=True)
    assert template == job["spec"]["workers"]["template"]


def test_what_a_cluster_does_at_the_end_has_its_defaults() -> None:
    """Without a word on it, servers go, pods that failed stay, and a job is never deleted by itself."""
    spec = parse_job(GOOD).spec
    assert (spec.servers.on_finish, spec.servers.storage) == ("Delete", None)
    assert spec.run_policy.ttl_seconds_after_finished is None
    assert spec.run_policy.clean_policy.on_success == "Running"
    assert spec.run_policy.clean_policy.on_failure == "None"
    assert (spec.scheduling.priority_class_name, spec.scheduling.scheduler_name) == ("", "")
    assert spec.monitoring.pod_monitor == "Auto"


def test_storage_is_taken_as_kubernetes_writes_it() -> None:
    """A size may be a quantity or a number of bytes; the rest has defaults."""
    storage = parse_job(changed("spec.servers.storage", {"size": "1.5Gi"})).spec.servers.storage
    assert storage is not None
    assert (storage.size, storage.storage_class_name) == ("1.5Gi", None)
    assert storage.retention.when_deleted == "Delete"
    parse_job(changed("spec.servers.storage", {"size": 1 << 30}))


@pytest.mark.parametrize("place", ["tables.0", "tableDefaults"])
def test_a_seed_that_json_would_round_is_refused(place: str) -> None:
    """A cluster would train with another seed than this machine, so both refuse it, once."""
    found = problems(changed(f"spec.{place}.seed", 2**53))
    assert len(found) == 1, found
    assert f"found {2**53}" in found[0]
    assert f"wanted an integer from 0 to {2**53 - 1}" in found[0]
    parse_job(changed(f"spec.{place}.seed", 2**53 - 1))


def test_the_logging_variables_belong_to_the_user() -> None:
    """TABLEBAY_LOG_LEVEL and TABLEBAY_LOG_FORMAT say nothing of who a process is, so a job may set them."""
    variables = [
        {"name": "TABLEBAY_LOG_LEVEL", "value": "debug"},
        {"name": "TABLEBAY_LOG_FORMAT", "value": "json"},
    ]
    assert len(parse_job(in_worker("env", variables)).spec.workers.container.env) == 2


def test_the_settings_of_a_server_belong_to_the_user() -> None:
    """What the job may set beside logging are options of tablebay-server that say nothing of who it is."""
    options = {option for action in parser("tablebay-server")._actions for option in action.option_strings}
    of_the_user = {"--" + name.removeprefix("TABLEBAY_").lower().replace("_", "-") for name in OWN_VARIABLES}
    assert of_the_user <= options
    assert not [name for name in OWN_VARIABLES if is_identity(name)]


def test_two_containers_of_which_none_is_named_worker_are_refused() -> None:
    """Which of them trains would be a guess."""
    containers = [{"name": "a"}, {"name": "b"}]
    found = problems(changed("spec.workers.template.spec.containers", containers))
    assert found == ["spec.workers: found containers a, b in template.spec, wanted one of them named worker"]


def test_every_problem_is_told_at_once() -> None:
    """A file with three mistakes is told all three."""
    job = changed("spec.servers.replicas", 0)
    job["spec"]["workers"]["replcas"] = job["spec"]["workers"].pop("replicas")
    assert len(problems(job)) == 3


def test_a_bad_default_is_told_once_and_not_for_each_table() -> None:
    """A mistake in tableDefaults is no mistake of the tables that take it."""
    job = changed("spec.tableDefaults", {"optimizer": {"type": "adamm"}})
    job["spec"]["tables"] = [{"name": f"t{index}", "dim": 4} for index in range(20)]
    assert problems(job) == [
        f"spec.tableDefaults.optimizer.type: found 'adamm', wanted one of {ALL_OPTIMIZERS}"
    ]


def test_a_problem_has_the_line_on_which_it_stands(tmp_path: Path) -> None:
    """A file's problems come in its order, each with its line."""
    path = tmp_path / "job.yaml"
    path.write_text(
        yaml.safe_dump(GOOD, sort_keys=False).replace("dim: 9", "dim: 0").replace("replicas", "replcas")
    )
    found = file_problem(path).split("\n")
    assert found[0] == "spec.tables[0].dim: found 0, wanted an integer from 1 to 65536 (line 9)"
    assert "spec.servers.replcas: unknown field; did you mean replicas? (line 11)" in found


@pytest.mark.parametrize("job", [None, [], "job", 3])
def test_a_file_that_is_no_mapping_is_refused(job: Any) -> None:
    """A list, a string or a number is no job."""
    assert problems(job) == ["the file: wanted a mapping with apiVersion, kind, metadata and spec"]


def test_numbers_mean_what_they_mean_to_kubernetes(tmp_path: Path) -> None:
    """1e-8 is a number, though YAML 1.1 calls it a string, and a date is a string."""
    optimizer, initializer = "{type: Adagrad, initialAccumulator: 1e-8}", "{type: Normal, stddev: 1E2}"
    table = f"{{name: a, dim: 1, optimizer: {optimizer}, initializer: {initializer}}}"
    text = yaml.safe_dump(changed("metadata.annotations", {"day": "DAY"})).replace("DAY", "2013-01-01")
    path = tmp_path / "job.yaml"
    path.write_text(text.replace("- dim: 9\n    name: fields", f"- {table}"))
    job = load_job(path)
    assert job.spec.tables[0].optimizer == Adagrad(initial_accumulator=1e-8)
    assert job.spec.tables[0].initializer == Normal(stddev=100.0)
    assert job.metadata.annotations == {"day": "2013-01-01"}


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"kind: \xff\xfe", "line 1: found the byte 0xff at position 6, wanted UTF-8"),
        (b"kind: a\0b", "found the character U+0000"),
        (b"kind: [1", "line 1, column 9: expected ',' or ']'"),
        (b"kind: a\nkind: b", "line 2: the key 'kind' is given twice, first on line 1; wanted it once"),
        (
            b"spec:\n  tables: []\n  tables: []",
            "line 3: the key 'tables' is given twice in spec, first on line 2",
        ),
        (b"kind: a\n---\nkind: b", "found a second document; wanted one job a file"),
        (b"1: a", "line 1: found the key 1; wanted a string (quote it)"),
        (b"a: *b", "found undefined alias"),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"a: " + b"[" * 3000, "nested too deeply; wanted at most 64 levels"),
        (b"a: &a [*a]", "nested too deeply; wanted at most 64 levels"),
        (b"a: 1e400", "found the number 1e400, wanted one below 1.8e308"),
        (b"a: " + b"9" * 5000, "found a value that YAML cannot read"),
        (b"a: " + b"x" * FILE_BYTES_MAX, "more than 65536 bytes; wanted at most 64 KiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_why(tmp_path: Path, content: bytes, wanted: str) -> None:
    """Broken text gets a clear error with the place of the trouble."""
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    assert wanted in file_problem(path)


def test_a_spec_above_64_kib_is_refused() -> None:
    """Also one that comes from a cluster, whose schema cannot see the whole of a template."""
    document = copy.deepcopy(GOOD)
    (container,) = document["spec"]["workers"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "LONG", "value": "x"}]
    size = len(json.dumps(document["spec"], separators=(",", ":")))
    container["env"][0]["value"] = "x" * (SPEC_BYTES_MAX - size + 1)
    parse_job(document)
    container["env"][0]["value"] += "x"
    with pytest.raises(JobInvalid, match="spec: found 65537 bytes of JSON, wanted at most 65536"):
        parse_job(document)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    """A file of some hundred bytes that stands for 9^9 values is refused before it takes the memory."""
    names = "abcdefghi"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    path = tmp_path / "job.yaml"
    path.write_text("\n".join(lines))
    assert "more than 50000 values once aliases are followed" in file_problem(path)


def test_a_byte_order_mark_and_carriage_returns_are_taken(tmp_path: Path) -> None:
    """A file that was written by an editor on Windows is a job like any other."""
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(GOOD).replace("\n", "\r\n").encode())
    assert load_job(path) == parse_job(GOOD)


def test_a_missing_file_a_folder_and_a_pipe_are_told_apart(tmp_path: Path) -> None:
    """Each gets its own words, and a pipe without a writer does not hold the reader."""
    assert "no such file" in file_problem(tmp_path / "none.yaml")
    assert "a directory; wanted a job file" in file_problem(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in file_problem(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500m", "0.5"),
        ("2", "2"),
        ("1.5Gi", "1610612736"),
        ("1e3", "1000"),
        ("1E3", "1000"),
        ("1E", "1e18"),
        (".5", "0.5"),
    ],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, amount: str) -> None:
    """Suffixes are decimal or binary, and E is exa unless digits follow."""
    assert parse_quantity(text) == parse_quantity(amount)


def test_fields_are_camel_case_in_yaml() -> None:
    """No field of the schema has an underscore."""
    schema = TrainingJob.model_json_schema(by_alias=True)
    names = [name for part in (schema, *schema["$defs"].values()) for name in part.get("properties", {})]
    assert [name for name in names if name != to_camel(name)] == []


# ---- checkpoints, durability, restore, suspend

CHECKPOINT: dict[str, Any] = {"destination": "pvc://claim/run", "everySeconds": 60}


def durable(checkpoint: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """GOOD with a checkpoint, with fields of that and of the spec set."""
    job = changed("spec.checkpoint", {**CHECKPOINT, **(checkpoint or {})})
    job["spec"] |= spec
    return job


def test_a_job_without_checkpoint_keeps_nothing() -> None:
    """That is what a job file without these fields says."""
    spec = parse_job(GOOD).spec
    assert not spec.durable
    assert not spec.suspend
    assert (spec.checkpoint, spec.durability.mode, spec.restore.from_) == (None, None, "Latest")


def test_a_checkpoint_has_the_defaults_of_the_documentation() -> None:
    """docs/job-file.md says each of these numbers."""
    spec = parse_job(durable({"claim": {"size": "1Gi"}})).spec
    assert spec.durable
    found = spec.checkpoint
    assert found is not None
    assert found.claim is not None
    assert (found.full_every, found.timeout_seconds, found.retain.last, found.when) == (
        12,
        600,
        5,
        ["Suspend"],
    )
    assert (found.claim.access_modes, found.claim.storage_class_name) == (["ReadWriteMany"], "")
    assert spec.restore.policy == "IfExists"


def test_every_field_of_a_checkpoint_is_taken() -> None:
    """As docs/job-file.md lists them."""
    job = durable(
        {
            "claim": {"size": "10Gi", "storageClassName": "nfs", "accessModes": ["ReadWriteMany"]},
            "everySteps": 5000,
            "fullEvery": 3,
            "when": ["Suspend", "Delete"],
            "timeoutSeconds": 30,
            "retain": {"last": 2},
        },
        suspend=True,
        durability={"mode": "checkpoint"},
        restore={"from": "pvc://other/run", "policy": "Required"},
    )
    spec = parse_job(job).spec
    assert spec.checkpoint is not None
    assert (spec.checkpoint.every_steps, spec.checkpoint.retain.last, spec.suspend) == (5000, 2, True)
    assert (spec.restore.from_, spec.restore.policy) == ("pvc://other/run", "Required")


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        *(
            (f"{scheme}://bucket/run", f"{scheme}:// is not there yet")
            for scheme in ("s3", "gs", "az", "file")
        ),
        ("pvc://claim", "wanted pvc://CLAIM/FOLDER"),
        ("pvc://claim/", "wanted pvc://CLAIM/FOLDER"),
        ("pvc://claim/../run", "wanted pvc://CLAIM/FOLDER"),
        ("pvc://claim/.hidden", "wanted pvc://CLAIM/FOLDER"),
        ("pvc://claim/a//b", "wanted pvc://CLAIM/FOLDER"),
        ("pvc://Claim/run", "wanted pvc://CLAIM/FOLDER"),
        ("/var/checkpoints", "wanted pvc://CLAIM/FOLDER"),
        ("pvc://claim/" + "x" * 2000, "wanted a string of at most 1024 characters"),
    ],
)
def test_a_destination_that_cannot_be_used_is_told_why(destination: str, words: str) -> None:
    """A store that is to come by its name, any other by what is wanted; the same of restore.from."""
    (problem,) = problems(durable({"destination": destination}))
    assert problem.startswith("spec.checkpoint.destination: found '")
    assert words in problem
    (problem,) = problems(durable(restore={"from": destination}))
    assert problem.startswith("spec.restore.from: found '")
    assert words in problem


@pytest.mark.parametrize("mode", ["wal", "replicated"])
def test_durability_that_is_to_come_is_refused_by_its_name(mode: str) -> None:
    """It is not taken for a misspelt word."""
    (problem,) = problems(durable(durability={"mode": mode}))
    assert problem == (
        f"spec.durability.mode: found '{mode}', which is not there yet; wanted none or checkpoint"
    )


@pytest.mark.parametrize(
    ("checkpoint", "spec", "words"),
    [
        (None, {"durability": {"mode": "checkpoint"}}, "found durability.mode checkpoint without checkpoint"),
        (None, {"restore": {"from": "Never"}}, "found restore without checkpoint"),
        ({}, {"durability": {"mode": "none"}}, "found durability.mode none beside checkpoint"),
        ({}, {"restore": {"from": "pvc://claim/run"}}, "wanted Latest for the job's own checkpoints"),
        ({}, {"restore": {"from": "Never", "policy": "Required"}}, "found policy Required beside from Never"),
        ({"everySeconds": None}, {}, "found neither everySeconds nor everySteps"),
        ({"when": ["Delete", "Delete"]}, {}, "spec.checkpoint.when: found Delete more than once"),
        ({"when": ["Preemption"]}, {}, "spec.checkpoint.when[0]: found 'Preemption', wanted one of"),
        ({"claim": {"size": "1Gi", "accessModes": []}}, {}, "accessModes: found a list of 0"),
        (
            {"claim": {"size": "1Gi", "accessModes": ["ReadOnlyMany"]}},
            {},
            "accessModes[0]: found 'ReadOnlyMany', wanted one of ReadWriteMany, ReadWriteOnce",
        ),
        ({"timeoutSeconds": 0}, {}, "spec.checkpoint.timeoutSeconds: found 0"),
        ({"secretRef": {"name": "s3"}}, {}, "spec.checkpoint.secretRef: unknown field"),
    ],
)
def test_what_does_not_go_together_is_refused(
    checkpoint: dict[str, Any] | None, spec: dict[str, Any], words: str
) -> None:
    """Nothing is accepted and then ignored."""
    job = durable(checkpoint, **spec) if checkpoint is not None else changed("spec.suspend", False)
    job["spec"] |= spec
    (problem,) = problems(job)
    assert words in problem


@pytest.mark.parametrize(
    "apart",
    [
        {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}},
        {"topologySpreadConstraints": [{"maxSkew": 1}]},
    ],
)
def test_a_claim_of_one_node_and_servers_of_several_are_refused(apart: dict[str, Any]) -> None:
    """With the reason; one server, or a claim that all nodes mount, is as good as before."""
    claim = {"size": "1Gi", "accessModes": ["ReadWriteOnce"]}
    servers = {"replicas": 2, "template": {"spec": {**apart, "containers": [{"name": "server"}]}}}
    (problem,) = problems(durable({"claim": claim}, servers=servers))
    assert "accessModes [ReadWriteOnce], which one node alone can mount" in problem
    assert f"servers.template.spec.{next(iter(apart))}" in problem
    parse_job(durable({"claim": claim}, servers={**servers, "replicas": 1}))
    parse_job(durable({"claim": {"size": "1Gi"}}, servers=servers))
    parse_job(durable({"claim": claim}))
