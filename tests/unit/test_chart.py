"""The Helm chart without Helm: its values against its schema, and the rules that its golden renderings keep.

Helm itself renders and refuses in tests/e2e/chart/check.py, which writes the golden files.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import tablebay

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "tablebay"
CHECK = ROOT / "tests" / "e2e" / "chart"
GOLDEN = CHECK / "golden"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# As tests/e2e/chart/check.py tries through Helm: every value away from its default.
OTHER_VALUES = yaml.safe_load((CHECK / "values.yaml").read_text())
CREATED = {"get", "list", "watch", "create", "patch", "delete"}
RIGHTS = {
    "tablebay.dev/trainingjobs": {"get", "list", "watch", "patch", "delete"},
    "tablebay.dev/trainingjobs/status": {"patch"},
    "apps/statefulsets": CREATED,
    "batch/jobs": CREATED,
    "/services": CREATED,
    "/serviceaccounts": CREATED - {"delete"},
    "policy/poddisruptionbudgets": CREATED,
    "networking.k8s.io/networkpolicies": CREATED,
    "monitoring.coreos.com/podmonitors": CREATED,
    "/persistentvolumeclaims": {"get", "create"},
    "/secrets": {"get", "create", "patch"},
    "/pods": {"list", "watch", "patch", "delete"},
    "/events": {"create"},
}

Object = dict[str, Any]


def rendered(name: str) -> list[Object]:
    """The objects of a golden rendering."""
    return [found for found in yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()) if found]


def of_kind(name: str, kind: str) -> list[Object]:
    return [found for found in rendered(name) if found["kind"] == kind]


def pods(name: str) -> Iterator[Object]:
    """The spec of every pod: the operator's and that of `helm test`."""
    for found in rendered(name):
        if found["kind"] == "Deployment":
            yield found["spec"]["template"]["spec"]
        elif found["kind"] == "Pod":
            yield found["spec"]


def is_a(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    classes: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
    }
    return isinstance(value, classes[kind])


def problems(schema: Object, value: Any, path: str = "") -> Iterator[str]:
    """What is wrong with `value`, by those words of draft 7 that the schema uses; another word is a KeyError."""

    def of_object(word: str, wanted: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            return
        if word == "required":
            yield from (f"{path}: lacks {name}" for name in wanted if name not in value)
        elif word == "properties":
            for name in value.keys() & wanted.keys():
                yield from problems(wanted[name], value[name], f"{path}/{name}")
        else:
            for name in value.keys() - schema.get("properties", {}).keys():
                if wanted is False:
                    yield f"{path}: unknown {name}"
                else:
                    yield from problems(wanted, value[name], f"{path}/{name}")

    def of_array(word: str, wanted: Any) -> Iterator[str]:
        if isinstance(value, list):
            if word == "uniqueItems":
                yield from (f"{path}: repeats {item}" for item in value if value.count(item) > 1)
            else:
                for number, item in enumerate(value):
                    yield from problems(wanted, item, f"{path}/{number}")

    simple: dict[str, Callable[[Any], bool]] = {
        "$schema": lambda _: True,
        "title": lambda _: True,
        "description": lambda _: True,
        "definitions": lambda _: True,
        "type": lambda kinds: any(
            is_a(value, kind) for kind in ([kinds] if is_a(kinds, "string") else kinds)
        ),
        "enum": lambda choices: value in choices,
        "not": lambda other: bool([*problems(other, value, path)]),
        "minProperties": lambda least: not isinstance(value, dict) or len(value) >= least,
        "minLength": lambda least: not isinstance(value, str) or len(value) >= least,
        "maxLength": lambda most: not isinstance(value, str) or len(value) <= most,
        "pattern": lambda pattern: not isinstance(value, str) or re.search(pattern, value) is not None,
        "minimum": lambda least: not is_a(value, "number") or value >= least,
        "maximum": lambda most: not is_a(value, "number") or value <= most,
    }
    for word, wanted in schema.items():
        if word == "$ref":
            yield from problems(SCHEMA["definitions"][wanted.rpartition("/")[2]], value, path)
        elif word in ("required", "properties", "additionalProperties"):
            yield from of_object(word, wanted)
        elif word in ("items", "uniqueItems"):
            yield from of_array(word, wanted)
        elif not simple[word](wanted):
            yield f"{path}: {value!r} is against {word}"


def objects(schema: Object, path: str = "") -> Iterator[tuple[str, Object]]:
    """Every part of the schema that takes an object, with where it is."""
    if schema.get("type") == "object":
        yield path, schema
    for word in ("properties", "definitions"):
        for name, part in schema.get(word, {}).items():
            yield from objects(part, f"{path}/{name}")
    if "items" in schema:
        yield from objects(schema["items"], f"{path}/items")


def changed(path: str, value: object) -> Object:
    """The default values with the one at `path` set to `value`."""
    values = copy.deepcopy(VALUES)
    place = values
    *folders, last = path.split(".")
    for name in folders:
        place = place[name]
    place[last] = value
    return values


class TestValues:
    """values.yaml and values.schema.json."""

    def test_the_defaults_are_valid_and_complete(self) -> None:
        """values.yaml agrees with the schema, has every value, and the schema requires each."""
        assert [*problems(SCHEMA, VALUES)] == []
        assert VALUES.keys() == SCHEMA["properties"].keys() - {"global"}
        assert set(SCHEMA["required"]) == VALUES.keys()

    def test_the_other_values_are_valid_and_complete(self) -> None:
        """The values of the second golden rendering agree with the schema and differ from every default."""
        assert [*problems(SCHEMA, OTHER_VALUES)] == []
        assert OTHER_VALUES.keys() == VALUES.keys()
        assert [name for name in VALUES if VALUES[name] == OTHER_VALUES[name]] == ["rbac"]

    def test_the_package_jsonschema_agrees(self) -> None:
        """Where the package jsonschema is installed, it finds the same."""
        try:
            import jsonschema
        except ImportError:
            return
        validator = jsonschema.Draft7Validator(SCHEMA)
        validator.check_schema(SCHEMA)
        for values in (VALUES, OTHER_VALUES):
            assert [*validator.iter_errors(values)] == []

    def test_every_object_is_closed(self) -> None:
        """Every object of the schema refuses unknown keys, or takes any key of one checked kind."""
        found = dict(objects(SCHEMA))
        assert len(found) > 10
        for path, part in found.items():
            if path == "/global":  # Helm's own, given to a chart inside another
                continue
            rest = part.get("additionalProperties", True)
            assert rest is False or (isinstance(rest, dict) and "type" in rest), path

    @pytest.mark.parametrize("path", ["", *(name for name in VALUES if isinstance(VALUES[name], dict))])
    def test_an_unknown_key_is_refused(self, path: str) -> None:
        """A key that no one knows is refused at the top and in every object, with its path."""
        where = f"/{path}" if path else ""
        wanted = f"{where}: unknown unknown"
        if path in ("nodeSelector", "podAnnotations"):  # any name may stand there, with a string
            wanted = f"{where}/unknown: 1 is against type"
        assert [*problems(SCHEMA, changed(f"{path}.unknown".lstrip("."), 1))] == [wanted]

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("image.tag", ""),
            ("image.tag", "a b"),
            ("image.repository", ""),
            ("serverImage", {"tag": ""}),
            ("resources", None),
            ("resources", {"limits": {"memory": "lots"}}),
            ("image.pullPolicy", "Sometimes"),
            ("replicas", 0),
            ("replicas", "2"),
            ("watchNamespaces", ["Upper"]),
            ("watchNamespaces", ["a", "a"]),
            ("watchNamespaces", "a"),
            ("crds.install", "yes"),
            ("client.qps", 0),
            ("log.level", "INFO"),
            ("metrics.serviceMonitor.interval", "soon"),
            ("metrics.prometheusRule.labels", {"release": 1}),
            ("extraEnv", [{"name": "POD_NAME", "value": "a"}]),
            ("extraEnv", [{"name": "A", "valuefrom": {}}]),
            ("tolerations", [{"kee": "a"}]),
            ("imagePullSecrets", [{"nam": "a"}]),
            ("fullnameOverride", "-a"),
        ],
    )
    def test_a_bad_value_is_refused_with_its_path(self, path: str, value: object) -> None:
        """Wrong types, empty names and null are refused, and the message says where."""
        found = [*problems(SCHEMA, changed(path, value))]
        assert found
        assert all(problem.startswith("/" + path.replace(".", "/")) for problem in found)

    @pytest.mark.parametrize("name", sorted(VALUES))
    def test_a_value_set_to_null_is_refused(self, name: str) -> None:
        """Helm drops a key that is set to null; the schema requires every key."""
        values = {key: value for key, value in VALUES.items() if key != name}
        assert [*problems(SCHEMA, values)] == [f": lacks {name}"]

    def test_every_value_is_documented(self) -> None:
        """docs/install.md has a line for each value, by its full name."""
        text = (ROOT / "docs" / "install.md").read_text()
        for name, value in VALUES.items():
            keys = [f"{name}.{key}" for key in value] if isinstance(value, dict) and value else [name]
            for key in keys:
                assert f"`{key}" in text, key


class TestChart:
    """Chart.yaml, and the files beside the templates."""

    def test_the_version_is_the_packages(self) -> None:
        """The chart, the operator in it and the Python package have one version."""
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        assert chart["version"] == chart["appVersion"] == tablebay.__version__
        assert chart["apiVersion"] == "v2"
        assert ">=1.29" in chart["kubeVersion"]

    def test_the_definition_is_in_the_chart(self) -> None:
        """The generated file is there, and its text can be cut at `spec:` as templates/crd.yaml does."""
        text = (CHART / "files" / "trainingjobs.yaml").read_text()
        crd = yaml.safe_load(text)
        assert crd["metadata"]["name"] == "trainingjobs.tablebay.dev"
        assert list(crd)[-1] == "spec"
        cut = re.search(r"(?ms)^spec:.*\Z", text)
        assert cut is not None
        assert yaml.safe_load(cut[0])["spec"] == crd["spec"]
        assert 'Files.Get "files/trainingjobs.yaml"' in (CHART / "templates" / "crd.yaml").read_text()

    def test_the_golden_files_are_of_this_chart(self) -> None:
        """Whoever changes a template renders the golden files anew, with Helm."""
        total = hashlib.sha256()
        paths = [path for path in CHART.rglob("*") if path.is_file() and path.parent.name != "files"]
        for path in (*sorted(paths), CHECK / "values.yaml"):
            total.update(f"{path.name}\n".encode() + path.read_bytes())
        assert (GOLDEN / "chart.sha256").read_text().strip() == total.hexdigest(), (
            "the chart changed: run `python tests/e2e/chart/check.py --write` (it needs helm)"
        )


class TestNetworkPolicy:
    """Who reaches the operator's pods."""

    def test_nothing_comes_in_but_at_the_port_of_probes_and_metrics(self) -> None:
        """From anywhere, so that neither kubelets nor a Prometheus are cut off; of the operator's own pods alone."""
        (policy,) = of_kind("default", "NetworkPolicy")
        (deployment,) = of_kind("default", "Deployment")
        assert policy["spec"] == {
            "podSelector": deployment["spec"]["selector"],
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": 8080, "protocol": "TCP"}]}],
        }
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert [one["containerPort"] for one in container["ports"]] == [8080]

    def test_metrics_from_is_for_the_operator_and_for_jobs(self) -> None:
        """The same list, in the policy and on the operator's command line."""
        peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "prometheus"}}}]
        (policy,), (deployment,) = of_kind("monitored", "NetworkPolicy"), of_kind("monitored", "Deployment")
        assert policy["spec"]["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}], "from": peers}]
        arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
        assert json.loads(arguments[arguments.index("--metrics-from") + 1]) == peers

    def test_it_can_be_left_out(self) -> None:
        """networkPolicy.enabled is false."""
        assert of_kind("namespaced", "NetworkPolicy") == []


class TestMonitoring:
    """What the chart tells Prometheus' operator."""

    def test_nothing_unless_it_is_asked_for(self) -> None:
        """A cluster without those kinds would refuse the whole release."""
        kinds = {found["kind"] for found in rendered("default")}
        assert not kinds & {"ServiceMonitor", "PrometheusRule", "PodMonitor"}

    def test_a_service_monitor_finds_the_operator(self) -> None:
        """By the labels and the port of its Service, which is there for it though metrics.enabled is false."""
        (monitor,), (service,) = of_kind("monitored", "ServiceMonitor"), of_kind("monitored", "Service")
        labels = service["metadata"]["labels"]
        assert labels.items() >= monitor["spec"]["selector"]["matchLabels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
        (other,) = of_kind("namespaced", "ServiceMonitor")
        assert other["metadata"]["labels"]["release"] == "monitoring"
        assert other["spec"]["endpoints"][0]["interval"] == "15s"

    def test_alerts_are_of_metrics_that_there_are(self, tmp_path: Path) -> None:
        """Each names a documented metric, is documented itself, and promtool reads its expression."""
        (found,) = of_kind("monitored", "PrometheusRule")
        assert found["metadata"]["labels"]["release"] == "monitoring"
        text = (ROOT / "docs" / "metrics.md").read_text()
        (group,) = found["spec"]["groups"]
        assert len(group["rules"]) >= 5
        for one in group["rules"]:
            names = re.findall(r"tablebay_[a-z_]+", one["expr"])
            assert names
            assert all(f"`{name}`" in text for name in names), one
            assert f"| `{one['alert']}` | `{one['expr']}` for {one['for']} |" in text
            assert one["annotations"]["summary"].endswith(".")
        promtool = shutil.which("promtool")
        if promtool is None:
            return
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump(found["spec"]))
        ended = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr


class TestRights:
    """Who may do what."""

    def test_no_rule_has_a_wildcard(self) -> None:
        """No template names a wildcard, exec, or a verb that gives away more rights."""
        for path in CHART.rglob("templates/**/*"):
            if path.suffix not in (".yaml", ".tpl"):
                continue
            for line in path.read_text().splitlines():
                assert not re.search(r"""^\s*(- |verbs:.*|resources:.*|apiGroups:.*)["']?\*""", line), line
                assert not re.search(r"\b(pods/exec|escalate|bind|impersonate)\b(?!:)", line), line

    @pytest.mark.parametrize(("name", "kind"), [("default", "ClusterRole"), ("namespaced", "Role")])
    def test_the_operator_has_exactly_its_rights(self, name: str, kind: str) -> None:
        """The rules are those of docs/install.md, in the cluster's role and in each namespace's."""
        operator = of_kind(name, "Deployment")[0]["metadata"]["name"]
        roles = [role for role in of_kind(name, kind) if role["metadata"]["name"] == operator]
        assert len(roles) == (1 if name == "default" else 2)
        for role in roles:
            rights: dict[str, set[str]] = {}
            for rule in role["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        assert f"{group}/{resource}" not in rights
                        rights[f"{group}/{resource}"] = set(rule["verbs"])
            gang = {"scheduling.x-k8s.io/podgroups": CREATED} if name == "namespaced" else {}
            assert rights == RIGHTS | gang

    def test_every_right_is_documented(self) -> None:
        """docs/install.md names each resource."""
        text = (ROOT / "docs" / "install.md").read_text()
        for right in (*RIGHTS, "coordination.k8s.io/leases"):
            assert f"`{right.lstrip('/').removeprefix('tablebay.dev/')}`" in text, right

    def test_a_namespaced_installation_has_nothing_of_the_cluster(self) -> None:
        """With watchNamespaces every object is in a namespace, the roles in the watched ones."""
        found = rendered("namespaced")
        assert all("namespace" in item["metadata"] for item in found)
        roles = [item for item in of_kind("namespaced", "RoleBinding") if item["metadata"]["name"] == "tb"]
        assert [role["metadata"]["namespace"] for role in roles] == ["ads", "search"]

    def test_podgroups_are_written_only_where_a_gang_is_enabled(self) -> None:
        """With gang.scheduler those of that scheduler, and the operator is told of it; else no rule speaks of them."""

        def groups(name: str) -> set[str]:
            return {
                group
                for kind in ("Role", "ClusterRole")
                for role in of_kind(name, kind)
                for rule in role["rules"]
                if "podgroups" in rule["resources"]
                for group in rule["apiGroups"]
            }

        assert groups("namespaced") == {"scheduling.x-k8s.io"}
        assert groups("default") == set()

    def test_workloads_are_written_only_where_kueue_is_enabled(self) -> None:
        """Listed to be found by their Job, and made active or inactive; no more."""
        rules = [
            rule
            for name in ("default", "namespaced", "monitored")
            for kind in ("Role", "ClusterRole")
            for role in of_kind(name, kind)
            for rule in role["rules"]
            if "workloads" in rule["resources"]
        ]
        assert [(rule["apiGroups"], sorted(rule["verbs"])) for rule in rules] == [
            (["kueue.x-k8s.io"], ["list", "patch"])
        ]

    def test_the_lease_is_one_and_named(self) -> None:
        """Leases other than its own can only be created; of accounts it reads its own, which owns the lease."""
        (role,) = [role for role in of_kind("default", "Role") if role["metadata"]["name"].endswith("-lease")]
        create, rest, account = role["rules"]
        assert create["verbs"] == ["create"]
        assert (account["resources"], account["verbs"]) == (["serviceaccounts"], ["get"])
        assert account["resourceNames"] == rest["resourceNames"]
        assert set(rest["verbs"]) == {"get", "update"}
        arguments = of_kind("default", "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        assert dict(pairwise(arguments))["--lease-name"] == rest["resourceNames"][0]

    def test_users_get_jobs_with_their_namespace(self) -> None:
        """Viewers read jobs and editors change them, but not their status."""
        roles = {
            role["metadata"]["name"].rpartition("-")[2]: role for role in of_kind("default", "ClusterRole")
        }
        labels = {
            name: {label.rpartition("-")[2] for label in role["metadata"]["labels"] if "aggregate" in label}
            for name, role in roles.items()
        }
        assert labels == {"operator": set(), "viewer": {"view", "edit", "admin"}, "editor": {"edit", "admin"}}
        for rule in roles["editor"]["rules"]:
            assert "trainingjobs/status" not in rule["resources"]


@pytest.mark.parametrize("name", ["default", "namespaced"])
class TestPods:
    """The operator's pods and that of `helm test`."""

    def test_the_restricted_standard(self, name: str) -> None:
        """What the Pod Security Standard `restricted` asks, and a read-only root besides."""
        found = [*pods(name)]
        assert len(found) == 2
        user = re.search(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert user is not None
        for pod in found:
            context = pod["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] == int(user[1]) != 0
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert pod.keys().isdisjoint({"hostNetwork", "hostPID", "hostIPC"})
            assert [volume.keys() - {"name"} for volume in pod["volumes"]] == [{"emptyDir"}]
            assert pod["enableServiceLinks"] is False
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
                assert container["resources"]["requests"]

    def test_no_service_reaches_outside(self, name: str) -> None:
        """No load balancer, node port or ingress."""
        assert {item["spec"]["type"] for item in of_kind(name, "Service")} <= {"ClusterIP"}
        assert not of_kind(name, "Ingress")

    def test_only_who_speaks_to_the_api_has_a_token(self, name: str) -> None:
        """Service accounts mount none by themselves; the two pods ask for theirs."""
        assert all(item["automountServiceAccountToken"] is False for item in of_kind(name, "ServiceAccount"))
        assert all(pod["automountServiceAccountToken"] is True for pod in pods(name))

    def test_no_name_is_given_twice(self, name: str) -> None:
        """Server-side apply refuses an environment variable that is there twice."""
        for pod in pods(name):
            for container in pod["containers"]:
                names = [variable["name"] for variable in container.get("env", [])]
                assert len(names) == len(set(names))


class TestCommands:
    """What the operator and the test are started with."""

    def test_the_operators_command_line(self) -> None:
        """Each flag with its value, and a --namespace for each one that is watched."""
        container = of_kind("default", "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
        wanted = {
            "default": "--server-image localhost/tablebay:dev --server-pull-policy IfNotPresent "
            "--lease-namespace ml --lease-name tablebay-operator --http-port 8080 --concurrency 8 --qps 100 "
            "--burst 200 --spread-seconds 300",
            "namespaced": "--namespace ads --namespace search "
            "--server-image registry.example/tablebay:1.0-server --server-pull-policy Never "
            "--gang Coscheduling --pod-monitor-label release=monitoring --pod-monitor-label team=ads "
            '--metrics-from [{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}] '
            "--lease-namespace ml --lease-name tb --http-port 8080 --concurrency 4 "
            "--qps 20 --burst 30 --spread-seconds 60",
        }
        for name, flags in wanted.items():
            (container,) = of_kind(name, "Deployment")[0]["spec"]["template"]["spec"]["containers"]
            assert container["command"] == ["tablebay-operator"]
            assert container["args"] == ["run", *flags.split()]

    @pytest.mark.parametrize("name", ["default", "namespaced"])
    @pytest.mark.parametrize("status", [0, 1])
    def test_helm_test_submits_a_valid_job_and_ends_as_it_does(
        self, name: str, status: int, tmp_path: Path
    ) -> None:
        """The pod's script submits a job that is accepted, deletes it in any case, and ends with its status."""
        from tablebay.client.job import load_job

        stub = tmp_path / "tablebay"
        stub.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
            f'[ "$1" = submit ] || exit 0\ncat > {tmp_path}/job.yaml\nexit {status}\n'
        )
        stub.chmod(0o755)
        (container,) = of_kind(name, "Pod")[0]["spec"]["containers"]
        ended = subprocess.run(
            [*container["command"], *container["args"]],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=30,
        )
        namespace = "ml" if name == "default" else "ads"
        assert ended.returncode == status, ended.stderr
        assert (tmp_path / "calls").read_text().splitlines() == [
            f"delete tablebay-helm-test -n {namespace} --wait --timeout 60",
            f"submit - -n {namespace} --wait --timeout 300",
            f"delete tablebay-helm-test -n {namespace} --wait --timeout 60",
        ]
        job = load_job(tmp_path / "job.yaml")
        assert (job.spec.servers.replicas, job.spec.workers.replicas) == (1, 1)
        text = (tmp_path / "job.yaml").read_text()
        assert f"image: {container['image']}\n" in text
        assert f"imagePullPolicy: {container['imagePullPolicy']}\n" in text

    def test_the_notes_hold_a_valid_job(self, tmp_path: Path) -> None:
        """The job to paste after an installation is accepted."""
        from tablebay.client.job import load_job

        found = re.search(r"<<'EOF'\n(.*)^EOF$", (GOLDEN / "notes.txt").read_text(), re.MULTILINE | re.DOTALL)
        assert found is not None
        path = tmp_path / "job.yaml"
        path.write_text(found[1])
        assert load_job(path).name == "flights"
