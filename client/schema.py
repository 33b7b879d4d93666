"""The CRD of TrainingJob, generated from the job file's model: `python -m tablebay.client.schema > FILE`.

Fields, bounds and texts are the model's (client/job.py). What is added here is what the model cannot say: rules
(CEL) on what may change in a job that exists and on what fields say together, the status, and the columns of
`kubectl get`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

from tablebay.client.cel import Code, Schema, put, quoted, rule
from tablebay.client.eviction import CLICK_WEIGHT, SHOW_WEIGHT
from tablebay.client.job import (
    API_VERSION,
    DESTINATION,
    DESTINATION_WORDS,
    JOB_NAME_CHARACTERS_MAX,
    KIND,
    OBJECT_STORES,
    SEED_MAX,
    JobName,
    TrainingJob,
)
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.placement import KUEUE_QUEUE_MAX
from tablebay.client.policy_rules import add_policy_rules
from tablebay.client.tables import (
    FILTER_COUNT_MAX,
    LIVE_OPTIONS,
    SIGHTINGS_SUFFIX,
    TABLE_NAME_CHARACTERS_MAX,
    Uniform,
)

PLURAL = "trainingjobs"
GROUP, VERSION = API_VERSION.split("/")

# Kept of a JSON schema; the rest is for other readers.
_KEPT = (
    "description",
    "type",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "required",
)
_INT32_MAX = 2**31 - 1
# A pod has some forty fields.
_TEMPLATE_FIELDS_MAX = 64

_OF_A_TABLE = {
    "name": "The table's name, by which the workers' code opens it.",
    "dim": "Numbers in a row; from tableDefaults if not given.",
    "dtype": "What a server keeps the numbers as; float32 if not given.",
    "optimizer": "What a push does to a row.",
    "initializer": "How a row begins.",
    "seed": "Rows begin as a function of it, the table's name, the key and the column.",
    "nonFinite": "What a gradient with NaN or infinity gets; Reject if not given.",
    "admitAt": "The push of a key by which its row is made; the first if not given.",
    "admitProbability": "The chance of a push of a key without a row to make it; 1 if not given.",
    "admitFilterKeys": "So many keys are counted in a filter rather than each by itself; 0, each, if not given.",
    "pushMissing": "What a push does with a key that has no row; Create if not given.",
    "eviction": "Which rows leave by themselves; none if not given.",
}


def crd() -> Schema:
    """The CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tj"],
                "categories": ["all", "training"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": _columns(),
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.replicas",
                            "statusReplicasPath": ".status.workers.replicas",
                            "labelSelectorPath": ".status.workers.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def text() -> str:
    """The CRD as YAML."""
    head = "# Generated from client/job.py by `make crd`; do not edit.\n"
    return head + yaml.dump(
        crd(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True, default_flow_style=False
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    Code, lambda dumper, code: dumper.represent_scalar("tag:yaml.org,2002:str", code, style="|")
)


def _columns() -> list[Schema]:
    def column(name: str, kind: str, path: str) -> Schema:
        return {"name": name, "type": kind, "jsonPath": path}

    return [
        column("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
        column("State", "string", '.status.conditions[?(@.type=="Ready")].reason'),
        column("Servers", "string", ".status.servers.readyText"),
        column("Workers", "string", ".status.workers.readyText"),
        column("Step", "integer", ".status.progress.step"),
        column("AUC", "number", ".status.progress.auc"),
        column("Ckpt", "date", ".status.checkpoint.lastSuccessful.time"),
        column("Restarts", "integer", ".status.restarts.total"),
        column("Age", "date", ".metadata.creationTimestamp"),
    ]


# ---- spec


def _root() -> Schema:
    spec = _Converter(TrainingJob.model_json_schema(by_alias=True, mode="validation")).spec()
    _add_rules(spec)
    name = TypeAdapter(JobName).json_schema()
    return {
        "description": "A training job with a parameter server: servers that hold tables, workers that train.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": _status(),
        },
        "x-kubernetes-validations": [
            rule(
                f"self.metadata.name.size() <= {JOB_NAME_CHARACTERS_MAX} "
                f"&& self.metadata.name.matches('{name['pattern']}')",
                f"metadata.name: wanted {name['x-wanted']}",
                says=f"'metadata.name: found ' + self.metadata.name + ', wanted {quoted(name['x-wanted'])}'",
            ),
            rule(
                "self.spec.servers.replicas == oldSelf.spec.servers.replicas || (has(self.spec.suspend) && "
                "self.spec.suspend && has(oldSelf.status) && has(oldSelf.status.conditions) && "
                "oldSelf.status.conditions.exists(c, c.type == 'Suspended' && c.status == 'True'))",
                "servers.replicas changes only once the job is suspended: its condition Suspended is True",
                field=".spec.servers.replicas",
                reason="FieldValueForbidden",
            ),
        ],
    }


class _Converter:
    """Pydantic's JSON schema as the structural schema that a CRD wants."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._definitions: Mapping[str, Any] = root["$defs"]

    def spec(self) -> Schema:
        """The schema of `spec`, without rules that span fields."""
        spec = self._converted(self._root["properties"]["spec"])
        tables = spec["properties"]["tables"]
        tables |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        table, defaults = tables["items"], spec["properties"]["tableDefaults"]
        # The rest may come from tableDefaults.
        table["required"] = ["name"]
        table["properties"]["seed"]["maximum"] = SEED_MAX
        for part in (table, defaults):
            for name, field in part["properties"].items():
                part["properties"][name] = {
                    "description": _OF_A_TABLE[name],
                    **_without(field, "description"),
                }
        return spec

    def _converted(self, schema: Mapping[str, Any]) -> Schema:
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            beside = _without(schema, "$ref")
            if name == "PodTemplate":
                return _template(self._definitions[name]["description"])
            return self._converted({**self._definitions[name], **beside})
        if schema.get("x-quantity"):
            return _quantity(schema)
        if "x-destination" in schema:
            return _destination(schema)
        if "discriminator" in schema:
            return self._union(schema)
        if "anyOf" in schema:
            (member,) = (one for one in schema["anyOf"] if one.get("type") != "null")
            return self._converted({**member, **_without(schema, "anyOf", "default", "title")})
        result = {key: schema[key] for key in _KEPT if key in schema}
        if "const" in schema:
            result["enum"] = [schema["const"]]
        if result.get("type") == "integer":
            result["format"] = "int32" if schema.get("maximum", 2**63) <= _INT32_MAX else "int64"
        if "items" in schema:
            result["items"] = self._converted(schema["items"])
        if "properties" in schema:
            result["properties"] = {
                name: self._converted(field) for name, field in schema["properties"].items()
            }
        return result

    def _union(self, schema: Mapping[str, Any]) -> Schema:
        """One object with the fields of all members, and a rule for each field that not all of them have."""
        members = {
            tag: self._converted({"$ref": reference})
            for tag, reference in schema["discriminator"]["mapping"].items()
        }
        properties: Schema = {"type": {"type": "string", "enum": sorted(members)}}
        owners: dict[str, list[str]] = {}
        for tag, member in sorted(members.items()):
            for name, field in _without(member["properties"], "type").items():
                if properties.setdefault(name, field) != field:
                    raise AssertionError(f"{name} has other bounds in {tag} than in {owners[name]}")
                owners.setdefault(name, []).append(tag)
        rules = [_owned(name, tags, sorted(members)) for name, tags in owners.items()]
        rules += [
            rule(
                f"self.type != '{tag}' || has(self.{name})",
                f"{tag} wants {name}",
                field=f".{name}",
                reason="FieldValueRequired",
            )
            for tag, member in sorted(members.items())
            for name in member.get("required", [])
            if name != "type"
        ]
        return {
            "type": "object",
            "required": ["type"],
            "properties": properties,
            "x-kubernetes-validations": rules,
        }


def _owned(name: str, owners: list[str], members: list[str]) -> Schema:
    """A rule: the field stands beside some types alone. The shorter list is the one shown."""
    others = [tag for tag in members if tag not in owners]
    few = others and len(others) < len(owners)
    words = f"a field of all but {', '.join(others)}" if few else f"a field of {', '.join(owners)}"
    listed = ", ".join(map(repr, others if few else owners))
    return rule(
        f"!has(self.{name}) || {'!' if few else ''}(self.type in [{listed}])",
        f"{name} is {words}" + ("" if few else " alone"),
        says=f"'{name} is {words}, not of ' + self.type",
        field=f".{name}",
        reason="FieldValueForbidden",
    )


def _without(schema: Mapping[str, Any], *names: str) -> Schema:
    return {key: value for key, value in schema.items() if key not in names}


def _quantity(schema: Mapping[str, Any]) -> Schema:
    found = "(type(self) == int ? string(self) : self)"
    wanted = schema["x-wanted"]
    return {
        **({"description": schema["description"]} if "description" in schema else {}),
        "x-kubernetes-int-or-string": True,
        "maxLength": next(one["maxLength"] for one in schema["anyOf"] if "maxLength" in one),
        "x-kubernetes-validations": [
            rule(
                # The API server takes any quantity from 2^63 - 1 up for 2^63 - 1, once it could read its exponent.
                "type(self) == int ? self > 0 : (isQuantity(self) && !self.matches('[eE][+-]?[0-9]{3,}') "
                "&& !quantity(self).isLessThan(quantity('1')) "
                f"&& quantity(self).isLessThan(quantity('{2**63 - 1}')))",
                f"wanted {wanted}",
                says=f"'found ' + {found} + ', wanted {quoted(wanted)}'",
            )
        ],
    }


def _destination(schema: Mapping[str, Any]) -> Schema:
    """A folder of a claim, or one of a few words. Whatever names a store that is to come is told so."""
    words = [*schema["x-destination"], DESTINATION_WORDS]
    wanted = quoted(", ".join(words))
    stores = "|".join(OBJECT_STORES)
    matches = f"self.matches(r'^{DESTINATION}$')"
    if schema["x-destination"]:
        matches = f"self in {schema['x-destination']!r} || {matches}"
    return {
        **{key: schema[key] for key in ("description", "type", "maxLength") if key in schema},
        "x-kubernetes-validations": [
            rule(
                matches,
                f"wanted {', '.join(words)}",
                says=f"'found ' + self + (self.matches('^({stores})://') ? ', which is not there yet' : '') "
                f"+ ', wanted {wanted}'",
            )
        ],
    }


def _template(description: str) -> Schema:
    """Any pod template. The values have no type, so that equality compares them whole and to any depth."""

    def anything(words: str) -> Schema:
        return {
            "description": words,
            "type": "object",
            "maxProperties": _TEMPLATE_FIELDS_MAX,
            "additionalProperties": {"x-kubernetes-preserve-unknown-fields": True, "nullable": True},
        }

    return {
        "description": description,
        "type": "object",
        "properties": {
            "metadata": anything("Labels and annotations of the pods."),
            "spec": anything("Any field of a pod's spec that gives the pod no power over its node."),
        },
    }


# ---- rules


def _fixed(schema: Schema) -> list[Schema]:
    """A rule for each field of `schema`: it never changes in a job that exists."""
    required = schema.get("required", ())
    return [_fixed_field(name, field, name in required) for name, field in schema["properties"].items()]


def _fixed_field(name: str, schema: Schema, required: bool) -> Schema:
    words = f"{name} cannot change in a job that exists"
    scalar = schema.get("type") in ("string", "integer", "number", "boolean")

    def shown(side: str) -> str:
        value = f"{side}.{name}" if schema["type"] == "string" else f"string({side}.{name})"
        return value if required else f"(has({side}.{name}) ? {value} : 'none')"

    same = f"self.{name} == oldSelf.{name}"
    if not required:
        same = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
    return rule(
        same,
        f"{words}; undo the change, or delete the job and make it anew",
        # format() is the one way to show a number whose cost the API server can bound.
        says=f"'{words}: found %s, wanted %s'.format([{shown('self')}, {shown('oldSelf')}])"
        if scalar
        else "",
        field=f".{name}",
        reason="FieldValueForbidden",
    )


def _comes_or_goes(name: str) -> Schema:
    """A rule: the field is neither added to a job that exists nor taken away."""
    return rule(
        f"has(self.{name}) == has(oldSelf.{name})",
        f"{name} cannot be added to a job that exists, nor taken away",
        field=f".{name}",
        reason="FieldValueForbidden",
    )


def _add_rules(spec: Schema) -> None:
    fields = spec["properties"]
    table, defaults = fields["tables"]["items"], fields["tableDefaults"]
    for part in (table, defaults):
        put(part, _table_rules(part))
    servers, workers, scheduling = fields["servers"], fields["workers"], fields["scheduling"]
    live = ("podDisruptionBudget", "replicas")
    put(servers, _fixed(_only(servers, *(name for name in servers["properties"] if name not in live))))
    put(workers, _workers_rules(workers))
    put(scheduling, _fixed(scheduling))
    put(
        scheduling,
        [
            rule(
                "!has(self.queue) || self.queue == '' || (has(self.gang) && self.gang in ['Volcano', 'Kueue'])",
                "found queue without gang Volcano or Kueue; wanted both, or no queue",
                field=".queue",
            ),
            rule(
                "!has(self.gang) || self.gang != 'Kueue' "
                f"|| (has(self.queue) && self.queue != '' && self.queue.size() <= {KUEUE_QUEUE_MAX})",
                f"gang Kueue wants queue, the name of a LocalQueue of at most {KUEUE_QUEUE_MAX} characters",
                field=".queue",
            ),
        ],
    )
    checkpoint, restore = fields["checkpoint"], fields["restore"]
    put(
        checkpoint,
        [
            *_fixed(_only(checkpoint, "destination", "claim")),
            rule(
                "has(self.everySeconds) || has(self.everySteps)",
                "found neither everySeconds nor everySteps; wanted one of them, or both",
                field=".everySeconds",
                reason="FieldValueRequired",
            ),
        ],
    )
    for words in (
        checkpoint["properties"]["when"],
        checkpoint["properties"]["claim"]["properties"]["accessModes"],
    ):
        words["x-kubernetes-list-type"] = "set"
    put(
        restore,
        [
            rule(
                "!has(self.policy) || self.policy != 'Required' || !has(self.from) || self.from != 'Never'",
                "found policy Required beside from Never; wanted IfExists, or another from",
                field=".policy",
            )
        ],
    )
    put(spec, _durability_rules())
    add_policy_rules(spec)
    gone = "oldSelf.tables.filter(o, !has(self.tables) || !self.tables.exists(n, n.name == o.name))"
    # The defaults are taken whole; see with_table_defaults in client/job.py.
    of_defaults = "has(self.tableDefaults) && has(self.tableDefaults"
    dtype = f"(has(t.dtype) ? t.dtype : ({of_defaults}.dtype) ? self.tableDefaults.dtype : 'float32'))"
    admit_at = f"(has(t.admitAt) ? t.admitAt : ({of_defaults}.admitAt) ? self.tableDefaults.admitAt : 1))"
    by_chance = (
        f"(has(t.admitProbability) ? t.admitProbability : ({of_defaults}.admitProbability) "
        "? self.tableDefaults.admitProbability : 1.0))"
    )
    filter_keys = (
        f"(has(t.admitFilterKeys) ? t.admitFilterKeys : ({of_defaults}.admitFilterKeys) "
        "? self.tableDefaults.admitFilterKeys : 0))"
    )
    push_missing = (
        f"(has(t.pushMissing) ? t.pushMissing : ({of_defaults}.pushMissing) "
        "? self.tableDefaults.pushMissing : 'Create'))"
    )
    longest = TABLE_NAME_CHARACTERS_MAX - len(SIGHTINGS_SUFFIX)
    put(
        spec,
        [
            *_fixed(_only(spec, "image")),
            _comes_or_goes("tableDefaults"),
            _comes_or_goes("scheduling"),
            rule(
                "!has(self.scheduling) || !has(self.scheduling.gang) || self.scheduling.gang != 'Kueue' "
                "|| !(has(self.workers.minReplicas) || (has(self.runPolicy) && has(self.runPolicy.failurePolicy) "
                "&& has(self.runPolicy.failurePolicy.backoff)))",
                "gang Kueue stops a Job whose parallelism changes; wanted no minReplicas and no failurePolicy.backoff "
                "beside it",
                field=".scheduling",
            ),
            rule(
                f"{_tls('self')} == {_tls('oldSelf')}",
                "network.tls cannot change in a job that exists; undo the change, or delete the job and make it anew",
                says=f"'network.tls cannot change in a job that exists: found %s, wanted %s'"
                f".format([{_tls('self')}, {_tls('oldSelf')}])",
                field=".network",
                reason="FieldValueForbidden",
            ),
            rule(
                "!has(oldSelf.tables) || (has(self.tables) "
                "&& oldSelf.tables.all(o, self.tables.exists(n, n.name == o.name)))",
                "a table cannot be taken out of a job that exists: its rows would be lost",
                says="'a table cannot be taken out of a job that exists: its rows would be lost; missing: %s' "
                f".format([{gone}.map(o, o.name)])",
                field=".tables",
                reason="FieldValueForbidden",
            ),
            rule(
                "has(self.tables) == has(oldSelf.tables) "
                "&& (!has(self.tables) || self.tables.all(t, oldSelf.tables.exists(o, o.name == t.name)))",
                "a table cannot be added to a job that exists; the workers' code may declare it",
                field=".tables",
                reason="FieldValueForbidden",
            ),
            rule(
                f"!has(self.tables) || ({of_defaults}.dim)) || self.tables.all(t, has(t.dim))",
                "each table wants dim, its own or that of tableDefaults",
                says="'dim is missing, wanted it in each table or in tableDefaults; tables without: %s' "
                ".format([self.tables.filter(t, !has(t.dim)).map(t, t.name)])",
                field=".tables",
                reason="FieldValueRequired",
            ),
            *(
                rule(
                    f"!has(self.tables) || self.tables.all(t, {dtype} != 'int64' "
                    f"|| (has(t.{name}) ? t.{name}.type == '{only}' "
                    f": (!({of_defaults}.{name})) || self.tableDefaults.{name}.type == '{only}')))",
                    f"a table of dtype int64 wants {name} {only}",
                    field=".tables",
                )
                for name, only in (("optimizer", "Add"), ("initializer", "Zeros"))
            ),
            rule(
                f"!has(self.tables) || self.tables.all(t, {dtype} != 'int64' || !(has(t.eviction) "
                f"? has(t.eviction.minNorm) && t.eviction.minNorm > 0.0 : ({of_defaults}.eviction) && "
                "has(self.tableDefaults.eviction.minNorm) && self.tableDefaults.eviction.minNorm > 0.0)))",
                "dtype is int64 beside eviction.minNorm, which is of weights; wanted one of the two",
                field=".tables",
            ),
            rule(
                f"!has(self.tables) || self.tables.all(t, {admit_at} == 1 || {push_missing} == 'Create')",
                "admitAt is above 1 and pushMissing is Drop, so no key would ever have a row; wanted Create",
                field=".tables",
            ),
            rule(
                f"!has(self.tables) || self.tables.all(t, {by_chance} == 1.0 || "
                f"({admit_at} == 1 && {push_missing} == 'Create'))",
                "admitProbability is below 1 beside admitAt or pushMissing Drop; wanted it with neither",
                field=".tables",
            ),
            rule(
                f"!has(self.tables) || self.tables.all(t, {filter_keys} == 0 || "
                f"({admit_at} >= 2 && {admit_at} <= {FILTER_COUNT_MAX}))",
                f"admitFilterKeys wants an admitAt of 2 to {FILTER_COUNT_MAX}",
                field=".tables",
            ),
            rule(
                f"!has(self.tables) || self.tables.all(t, {admit_at} == 1 || t.name.size() <= {longest})",
                f"a table with admitAt wants a name of at most {longest} characters",
                field=".tables",
            ),
        ],
    )


def _workers_rules(workers: Schema) -> list[Schema]:
    """How many there are changes within bounds that were there from the start."""
    return [
        *_fixed(_only(workers, "minReplicas", "maxReplicas", "template")),
        rule(
            "self.replicas == oldSelf.replicas || has(self.minReplicas)",
            "replicas cannot change in a job without minReplicas and maxReplicas",
            field=".replicas",
            reason="FieldValueForbidden",
        ),
        rule(
            "has(self.minReplicas) == has(self.maxReplicas)",
            "found one of minReplicas and maxReplicas; wanted both or neither",
            field=".minReplicas",
        ),
        rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || "
            "(self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas)",
            "wanted minReplicas <= replicas <= maxReplicas",
            says="'found replicas %d, wanted %d to %d'.format([self.replicas, self.minReplicas, self.maxReplicas])",
            field=".replicas",
        ),
    ]


def _tls(side: str) -> str:
    """What network.tls is, with its default."""
    return f"(has({side}.network) && has({side}.network.tls) ? {side}.network.tls : 'Enabled')"


def _durability_rules() -> list[Schema]:
    """What checkpoint, durability, restore and suspend say together, and when they may change."""
    suspended = "(has(self.suspend) && self.suspend)"
    mode = "has(self.durability) && has(self.durability.mode) && self.durability.mode"
    return [
        _comes_or_goes("checkpoint"),
        *(
            rule(
                # The servers read it when they start.
                f"{suspended} || (has(self.{name}) == has(oldSelf.{name}) "
                f"&& (!has(self.{name}) || self.{name} == oldSelf.{name}))",
                f"{name} changes only while the job is suspended; undo the change, or set suspend: true with it",
                field=f".{name}",
                reason="FieldValueForbidden",
            )
            for name in ("checkpoint", "durability", "restore")
        ),
        rule(
            f"!{suspended} || has(self.checkpoint) || (has(oldSelf.suspend) && oldSelf.suspend)",
            "a job without checkpoint cannot be suspended: its rows would be lost; delete it, or leave it",
            field=".suspend",
            reason="FieldValueForbidden",
        ),
        rule(
            f"has(self.checkpoint) || !({mode} == 'checkpoint')",
            "found durability.mode checkpoint without checkpoint; wanted both or neither",
            field=".durability",
        ),
        rule(
            f"!has(self.checkpoint) || !({mode} == 'none')",
            "found durability.mode none beside checkpoint; wanted mode checkpoint, or no checkpoint",
            field=".durability",
        ),
        rule(
            "has(self.checkpoint) || !has(self.restore) || ((!has(self.restore.from) || "
            "self.restore.from == 'Latest') && (!has(self.restore.policy) || self.restore.policy == 'IfExists'))",
            "found restore without checkpoint; wanted both or neither",
            field=".restore",
        ),
        rule(
            "!has(self.checkpoint) || !has(self.restore) || !has(self.restore.from) || "
            "self.restore.from != self.checkpoint.destination",
            "restore.from is checkpoint.destination; wanted Latest for the job's own checkpoints",
            field=".restore",
        ),
    ]


def _table_rules(table: Schema) -> list[Schema]:
    """What never changes of a table, or of the defaults; what an optimizer's fields say together."""
    optimizer, initializer = table["properties"]["optimizer"], table["properties"]["initializer"]
    zero = "has(self.{0}) && self.{0} == 0.0"
    none = "(!has(self.{0}) || self.{0} == 0.0)"
    sums = {"Adagrad", "RowwiseAdagrad", "TensorNetAdagrad"}
    divided = ", ".join(
        repr(name) for name, cls in OPTIMIZERS.items() if hasattr(cls, "epsilon") and name not in sums
    )
    ftrl = ", ".join(repr(name) for name in OPTIMIZERS if name.endswith("FTRL"))
    constant = "(!has(self.schedule) || self.schedule == 'Constant')"
    no_accumulator = (
        f"(self.type == 'TensorNetAdagrad' ? {none.format('initialAccumulator')} : "
        f"{zero.format('initialAccumulator')})"
    )
    eviction = table["properties"]["eviction"]
    more = "(has(self.{0}) && self.{0} > 0)"
    norm = "(has(self.minNorm) && self.minNorm > 0.0)"
    score = "(has(self.minScore) && self.minScore > 0.0)"
    waits = f"({more.format('minCount')} || {norm})"
    budget = f"({more.format('maxRows')} || {more.format('maxBytes')})"
    shows = " || ".join(("(has(self.decay) && self.decay > 0.0)", score, more.format("maxUnseenDays")))
    least_used = "(has(self.policy) && self.policy == 'LFU')"
    put(
        eviction,
        [
            rule(
                f"{more.format('ttlSeconds')} || {waits} || {budget} || {shows}",
                "found no rule; wanted ttlSeconds, minCount, minNorm, maxRows, maxBytes, decay, minScore or "
                "maxUnseenDays",
            ),
            rule(
                f"!{score} || (has(self.decay) && self.decay > 0.0)",
                "decay is 0, wanted more than 0, at most 1, with minScore",
                field=".decay",
            ),
            rule(
                f"{score} || ((!has(self.showWeight) || self.showWeight == {SHOW_WEIGHT}) && "
                f"(!has(self.clickWeight) || self.clickWeight == {CLICK_WEIGHT}))",
                "found showWeight or clickWeight, wanted minScore with them",
            ),
            rule(
                f"!{more.format('decayEverySeconds')} || {shows}",
                "decayEverySeconds wants decay, minScore or maxUnseenDays with it",
                field=".decayEverySeconds",
            ),
            rule(
                f"{more.format('graceSeconds')} ? {waits} || {least_used} : !{waits}",
                "graceSeconds wants more than 0 with minCount or minNorm, and 0 without them and policy LFU",
                field=".graceSeconds",
            ),
            rule(
                f"!{least_used} || {budget}",
                "policy is LFU, wanted maxRows or maxBytes with it",
                field=".policy",
            ),
        ],
    )
    put(
        optimizer,
        [
            # What servers can be told of while they run.
            *_fixed(
                _only(
                    optimizer,
                    *(name for name in optimizer["properties"] if name not in map(to_camel, LIVE_OPTIONS)),
                )
            ),
            rule(
                f"!has(self.epsilon) || self.epsilon > 0.0 || !(self.type in [{divided}] "
                f"|| (self.type in ['Adagrad', 'RowwiseAdagrad', 'TensorNetAdagrad'] && {no_accumulator}))",
                "epsilon is 0, so that a zero gradient would divide 0 by 0; wanted more than 0",
                field=".epsilon",
            ),
            rule(
                f"!(self.type in [{ftrl}] && {zero.format('learningRate')})",
                "learningRate is 0, and FTRL divides by it; wanted more than 0",
                field=".learningRate",
            ),
            rule(
                f"!(self.type in ['FTRL', 'GroupFTRL'] && {zero.format('beta')} && {none.format('l2')} "
                f"&& {none.format('initialAccumulator')}) && !(self.type == 'TensorFlowFTRL' && {none.format('beta')} "
                f"&& {none.format('l2')} && {zero.format('initialAccumulator')}) && !(self.type == 'TensorNetFTRL' "
                f"&& {zero.format('beta')} && {zero.format('l2')})",
                "beta, l2 and initialAccumulator are all 0, so that a zero gradient would divide 0 by 0",
                field=".beta",
            ),
            rule(
                f"!(self.type == 'PaddleAdagrad' && {zero.format('initialAccumulator')})",
                "initialAccumulator is 0, so that the first gradient would divide 0 by 0; wanted more than 0",
                field=".initialAccumulator",
            ),
            rule(
                f"{constant} || (has(self.scheduleSteps) && self.scheduleSteps > 0)",
                "scheduleSteps is 0, wanted at least 1 with a schedule",
                field=".scheduleSteps",
            ),
            rule(
                f"!{constant} || ({none.format('scheduleSteps').replace('0.0', '0')} "
                f"&& {none.format('scheduleTo')})",
                "scheduleSteps and scheduleTo say how a schedule ends, and schedule is Constant; wanted another",
                field=".schedule",
            ),
            rule(
                "!(has(self.schedule) && self.schedule in ['Exponential', 'Staircase']) || "
                "(has(self.scheduleTo) && self.scheduleTo > 0.0)",
                "scheduleTo is 0, which no product reaches; wanted more than 0",
                field=".scheduleTo",
            ),
            rule(
                "!(has(self.decoupled) && self.decoupled) || (has(self.weightDecay) && self.weightDecay > 0.0)",
                "decoupled is set and weightDecay is 0; wanted more than 0",
                field=".decoupled",
            ),
        ],
    )
    put(
        initializer,
        [
            rule(
                f"self.type != 'Uniform' || (has(self.low) ? self.low : {Uniform().low}) "
                f"<= (has(self.high) ? self.high : {Uniform().high})",
                "low is above high; wanted low <= high",
                field=".low",
            )
        ],
    )
    fixed = (name for name in table["properties"] if name not in ("name", "optimizer"))
    return [*_fixed(_only(table, *fixed)), _comes_or_goes("optimizer")]


def _only(schema: Schema, *names: str) -> Schema:
    """`schema` with these fields alone."""
    return {**schema, "properties": {name: schema["properties"][name] for name in names}}


# ---- status


def _status() -> Schema:
    count: Schema = {"type": "integer", "format": "int32", "minimum": 0}
    large: Schema = {"type": "integer", "format": "int64", "minimum": 0}
    number: Schema = {"type": "number"}
    time: Schema = {"type": "string", "format": "date-time", "maxLength": 64}

    def string(characters: int) -> Schema:
        return {"type": "string", "maxLength": characters}

    def fields(**properties: Schema) -> Schema:
        return {"type": "object", "properties": properties}

    condition = {
        **fields(
            type={**string(316), "minLength": 1},
            status={"type": "string", "enum": ["True", "False", "Unknown"]},
            observedGeneration=large,
            lastTransitionTime=time,
            reason={**string(1024), "pattern": r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
            message=string(32768),
        ),
        "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    }
    return {
        "description": "What the operator last saw. It is written by the operator alone, and decides nothing.",
        **fields(
            observedGeneration=large,
            conditions={
                "type": "array",
                "maxItems": 12,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": condition,
            },
            startTime=time,
            completionTime=time,
            servers=fields(
                replicas=count, ready=count, readyText=string(32), image=string(1024), epoch=large
            ),
            workers=fields(
                replicas=count,
                ready=count,
                succeeded=count,
                failed=count,
                readyText=string(32),
                selector=string(512),
            ),
            restarts=fields(total=count, inWindow=count),
            checkpoint=fields(
                lastSuccessful=fields(
                    number=large,
                    kind={"type": "string", "enum": ["Empty", "Full", "Delta"]},
                    time=time,
                    bytes=large,
                    rows=large,
                    durationSeconds=number,
                    pauseSeconds=number,
                    aligned={"type": "boolean"},
                ),
                lastFailed=fields(message=string(1024), time=time),
            ),
            progress=fields(
                step=large,
                loss=number,
                auc=number,
                logloss=number,
                examplesPerSecond=number,
                updatedTime=time,
            ),
            firstFailure={
                "description": "What failed first; kept when the pods are gone.",
                **fields(
                    pod=string(253),
                    node=string(253),
                    container=string(63),
                    exitCode={"type": "integer", "format": "int32"},
                    signal={"type": "integer", "format": "int32"},
                    reason=string(1024),
                    message=string(1024),
                    rule=string(63),
                    time=time,
                ),
            },
        ),
    }


if __name__ == "__main__":
    sys.stdout.write(text())
