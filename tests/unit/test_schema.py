"""The CRD: fresh, structural, bounded, and of the same mind as the job file's model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from tablebay.client import schema
from tablebay.client.job import (
    DESTINATION,
    SERVERS_MAX,
    TABLES_MAX,
    WORKERS_MAX,
    Checkpoint,
    Claim,
    Restore,
    Servers,
    ServersBudget,
    Spec,
    Storage,
    Workers,
)
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.policies import Backoff, FailurePolicy, FailureRule, RunPolicy, SuccessPolicy
from tablebay.client.tables import DIM_MAX, INITIALIZERS, TableSpec

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "helm" / "tablebay" / "files" / "trainingjobs.yaml"
BYTES_MAX = 100_000


def walk(part: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema below `part`, with its path: `.spec.tables[].dim`."""
    yield path, part
    for name, field in part.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    if "items" in part:
        yield from walk(part["items"], f"{path}[]")
    if "additionalProperties" in part:
        yield from walk(part["additionalProperties"], f"{path}{{}}")


VERSION = schema.crd()["spec"]["versions"][0]
OPEN_API = VERSION["schema"]["openAPIV3Schema"]
PARTS = dict(walk(OPEN_API))
# The API server bounds these itself.
OF_THE_SERVER = {"", ".apiVersion", ".kind", ".metadata"}


def names_of(one: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(one)]


def rules(path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = PARTS[path].get("x-kubernetes-validations", [])
    return found


def said(rule: dict[str, Any]) -> str:
    """What whoever is refused reads: always the same, or an expression with what was found."""
    text: str = rule.get("message") or rule["messageExpression"]
    return text


def fixed(path: str) -> set[str]:
    """The fields below a path that never change in a job that exists."""
    return {
        rule["fieldPath"].removeprefix(".")
        for rule in rules(path)
        if "cannot change in a job that exists" in said(rule)
    }


def test_the_chart_has_the_crd_of_this_model() -> None:
    """The chart's file is what the model gives now; `make crd` writes it."""
    assert FILE.read_text() == schema.text(), "run `make crd`"


def test_the_module_prints_the_crd() -> None:
    """`python -m tablebay.client.schema` writes the YAML to standard output, and it stands for the CRD."""
    command = [sys.executable, "-Im", "tablebay.client.schema"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert yaml.safe_load(printed) == json.loads(json.dumps(schema.crd()))


def test_the_crd_is_small() -> None:
    """Plain `kubectl apply` keeps it as JSON in an annotation of at most 262,144 bytes; we stay far below."""
    assert len(json.dumps(schema.crd(), separators=(",", ":"))) < BYTES_MAX


def test_the_schema_is_structural() -> None:
    """Each part has one type, no reference and no choice of schemas, as the API server wants it."""
    for path, part in PARTS.items():
        assert not {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "default"} & set(part), path
        free = part.get("x-kubernetes-int-or-string") or part.get("x-kubernetes-preserve-unknown-fields")
        assert ("type" in part) != bool(free), path
        assert not ("properties" in part and "additionalProperties" in part), path
        assert not [key for key in part if key.startswith("x-") and not key.startswith("x-kubernetes-")], path


def test_every_list_map_and_text_is_bounded() -> None:
    """Without bounds the API server refuses rules as too costly."""
    for path, part in PARTS.items():
        if path in OF_THE_SERVER:
            continue
        if part.get("type") == "string" or part.get("x-kubernetes-int-or-string"):
            assert "maxLength" in part or "enum" in part, path
        if part.get("type") == "array":
            assert "maxItems" in part, path
        if "additionalProperties" in part:
            assert "maxProperties" in part, path


def test_the_bounds_are_those_of_the_model() -> None:
    """The numbers of the model stand in the schema."""
    assert PARTS[".spec.servers.replicas"]["maximum"] == SERVERS_MAX
    assert PARTS[".spec.workers.replicas"]["maximum"] == WORKERS_MAX
    assert PARTS[".spec.tables"]["maxItems"] == TABLES_MAX
    assert PARTS[".spec.tables[].dim"]["maximum"] == DIM_MAX
    assert PARTS[".spec"]["required"] == ["servers", "workers"]
    assert PARTS[".spec.servers.storage"]["required"] == ["size"]


def test_the_fields_are_those_of_the_model() -> None:
    """No field of the model is left out of the schema, and none is added."""

    def names(path: str) -> set[str]:
        return set(PARTS[path]["properties"])

    for path, model in (
        (".spec", Spec),
        (".spec.servers", Servers),
        (".spec.servers.podDisruptionBudget", ServersBudget),
        (".spec.workers", Workers),
        (".spec.servers.storage", Storage),
        (".spec.runPolicy", RunPolicy),
        (".spec.runPolicy.failurePolicy", FailurePolicy),
        (".spec.runPolicy.failurePolicy.backoff", Backoff),
        (".spec.runPolicy.failurePolicy.rules[]", FailureRule),
        (".spec.runPolicy.successPolicy", SuccessPolicy),
        (".spec.checkpoint", Checkpoint),
        (".spec.checkpoint.claim", Claim),
        (".spec.restore", Restore),
    ):
        assert names(path) == {field.alias or to_camel(name) for name, field in model.model_fields.items()}
    table = {to_camel(name) for name in TableSpec.__dataclass_fields__}
    assert names(".spec.tables[]") == table
    assert names(".spec.tableDefaults") == table - {"name"}


def test_a_union_is_one_object_with_a_rule_for_each_field() -> None:
    """All fields of all optimizers and initializers are there, and each may stand beside its types alone."""
    for place in (".spec.tables[]", ".spec.tableDefaults"):
        for field, classes in (
            ("optimizer", tuple(OPTIMIZERS.values())),
            ("initializer", tuple(INITIALIZERS.values())),
        ):
            path = f"{place}.{field}"
            wanted = {to_camel(name) for one in classes for name in names_of(one)}
            assert set(PARTS[path]["properties"]) == wanted
            guarded = {rule["fieldPath"] for rule in rules(path) if "is a field of" in said(rule)}
            assert guarded == {f".{name}" for name in wanted - {"type"}}
        assert "Constant wants value" in [said(rule) for rule in rules(f"{place}.initializer")]


def test_tables_are_known_by_name() -> None:
    """So that names are unique, and a rule compares a table with what it was."""
    tables = PARTS[".spec.tables"]
    assert (tables["x-kubernetes-list-type"], tables["x-kubernetes-list-map-keys"]) == ("map", ["name"])


def test_what_a_running_job_cannot_take_is_fixed() -> None:
    """All of servers, workers and tables; not policies."""
    assert fixed(".spec.servers") == set(PARTS[".spec.servers"]["properties"]) - {
        "podDisruptionBudget",
        "replicas",
    }
    assert any("once the job is suspended" in said(rule) for rule in rules(""))
    assert fixed(".spec.workers") == {"minReplicas", "maxReplicas", "template"}
    assert any(said(rule).startswith("replicas cannot change") for rule in rules(".spec.workers"))
    assert fixed(".spec.scheduling") == set(PARTS[".spec.scheduling"]["properties"])
    assert fixed(".spec") == {"image", "network", "runPolicy"}
    for place in (".spec.tables[]", ".spec.tableDefaults"):
        assert fixed(place) == set(PARTS[place]["properties"]) - {"name", "optimizer"}
        optimizer = set(PARTS[f"{place}.optimizer"]["properties"])
        assert fixed(f"{place}.optimizer") == optimizer - {"learningRate", "weightDecay"}
    assert [
        said(rule).split(" cannot change")[0]
        for rule in rules(".spec")
        if rule.get("fieldPath") == ".runPolicy"
    ][:2] == ["failurePolicy.rules", "successPolicy"]
    assert not any("oldSelf" in rule["rule"] for rule in rules(".spec.runPolicy") + rules(".spec.monitoring"))


def test_checkpoints_change_while_the_job_is_suspended_and_move_never() -> None:
    """The servers read the settings when they start; the destination is where the rows are."""
    assert fixed(".spec.checkpoint") == {"destination", "claim"}
    while_suspended = {
        rule["fieldPath"] for rule in rules(".spec") if "only while the job is suspended" in said(rule)
    }
    assert while_suspended == {".checkpoint", ".durability", ".restore"}
    assert any("cannot be suspended" in said(rule) for rule in rules(".spec"))


def test_the_places_of_checkpoints_are_those_of_the_model() -> None:
    """One pattern for both; the words of restore.from beside it."""
    (destination,) = rules(".spec.checkpoint.destination")
    assert destination["rule"] == f"self.matches(r'^{DESTINATION}$')"
    (source,) = rules(".spec.restore.from")
    assert source["rule"] == f"self in ['Latest', 'Never'] || {destination['rule']}"
    for rule in (destination, source):
        assert "which is not there yet" in rule["messageExpression"]


def test_a_template_takes_anything_and_is_compared_whole() -> None:
    """Its values have no type: with `properties` the API server would overlook a field put for another."""
    for role in ("servers", "workers"):
        for name in ("metadata", "spec"):
            part = PARTS[f".spec.{role}.template.{name}"]
            assert part["type"] == "object"
            assert part["additionalProperties"] == {
                "x-kubernetes-preserve-unknown-fields": True,
                "nullable": True,
            }


def test_each_rule_has_a_message_of_one_line() -> None:
    """Whoever is refused reads what to do; a message, or an expression for one, never both."""
    found = [rule for path in PARTS for rule in rules(path)]
    assert len(found) > 40
    for rule in found:
        assert ("message" in rule) != ("messageExpression" in rule)
        assert said(rule)
        assert "\n" not in said(rule) + rule["rule"]
        assert len(said(rule)) <= 2048


def test_kubectl_get_shows_the_state() -> None:
    """The columns, and the status fields that they show, go together."""
    columns = {column["name"]: column["jsonPath"] for column in VERSION["additionalPrinterColumns"]}
    names = ["Ready", "State", "Servers", "Workers", "Step", "AUC", "Ckpt", "Restarts", "Age"]
    assert list(columns) == names
    for path in columns.values():
        assert path.startswith((".metadata.", ".status.conditions[?")) or path in PARTS


def test_the_workers_can_be_scaled() -> None:
    """Each path of the scale subresource leads to a field of the schema."""
    assert set(VERSION["subresources"]) == {"status", "scale"}
    assert set(VERSION["subresources"]["scale"].values()) <= set(PARTS)
