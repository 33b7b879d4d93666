"""The model of a table, from Python, from YAML or JSON, and on the wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tablebay.client.errors import BadRequest
from tablebay.client.tables import (
    SGD,
    Adagrad,
    Adam,
    Add,
    Constant,
    Normal,
    TableSpec,
    Uniform,
    Zeros,
    differences,
    dump_tables,
    load_tables,
)

EVERY_KIND = [
    TableSpec("sgd", 1, optimizer=SGD(0.5), initializer=Zeros()),
    TableSpec("adagrad", 16, optimizer=Adagrad(0.05, 1e-8), initializer=Normal(0.01, 0.5), seed=2**64 - 1),
    TableSpec(
        "adam",
        65536,
        optimizer=Adam(0.002, 0.8, 0.99, 1e-6),
        initializer=Uniform(-1.0, 2.0),
        non_finite="Zero",
    ),
    TableSpec("add", 4, optimizer=Add(), initializer=Constant(3.0), non_finite="Allow"),
    TableSpec("sums", 1, dtype="int64"),
]


def test_optimizers_take_their_values_by_position_and_by_name() -> None:
    """`Adagrad(0.05)` is `Adagrad(learning_rate=0.05)`, and the native core gets snake_case names."""
    assert Adagrad(0.05) == Adagrad(learning_rate=0.05)
    assert Adagrad(0.05).parameters() == {"learning_rate": 0.05, "initial_accumulator": 0.1, "epsilon": 1e-8}
    assert Adam(0.1, 0.5).parameters() == {
        "learning_rate": 0.1,
        "beta1": 0.5,
        "beta2": 0.999,
        "epsilon": 1e-8,
    }
    assert SGD(1).parameters() == {"learning_rate": 1.0}
    assert Add().parameters() == {}
    assert repr(Adagrad(0.05)) == "Adagrad(learning_rate=0.05, initial_accumulator=0.1, epsilon=1e-08)"


def test_an_int64_table_adds_from_zeros_unless_told_otherwise() -> None:
    """The defaults follow the dtype, since only Add works on int64."""
    assert TableSpec("sums", 1, "int64") == TableSpec("sums", 1, "int64", Add(), Zeros())
    assert TableSpec("user", 8) == TableSpec("user", 8, "float32", Adagrad(), Normal())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(-1.0), "SGD: learning_rate is -1.0: .*greater than or equal to 0"),
        (lambda: SGD("0.1"), "SGD: learning_rate is '0.1': .*valid number"),
        (lambda: SGD(True), "SGD: learning_rate is True"),
        (lambda: SGD(float("nan")), "SGD: learning_rate is nan: .*finite"),
        (lambda: SGD(momentum=0.9), "SGD: momentum is 0.9: Unexpected"),
        (lambda: Adam(beta2=1.0), "Adam: beta2 is 1.0: .*less than or equal to 0.999995"),
        (lambda: Adagrad(0.05, 0.0, 0.0), "initial_accumulator and epsilon are both 0"),
        (lambda: Adam(epsilon=0.0), "epsilon is 0"),
        (Constant, "Constant: value is missing"),
        (lambda: Uniform(1.0, 0.0), "low is 1.0, above high, which is 0.0"),
        (lambda: TableSpec("User", 8), "name is 'User'"),
        (lambda: TableSpec("a.b", 8), "name is 'a.b'"),
        (lambda: TableSpec("user-", 8), "name is 'user-'"),
        (lambda: TableSpec("user\n", 8), "name is 'user"),
        (lambda: TableSpec("", 8), "name is ''"),
        (lambda: TableSpec("a" * 64, 8), "at most 63"),
        (lambda: TableSpec("user", 0), "dim is 0"),
        (lambda: TableSpec("user", -4), "dim is -4"),
        (lambda: TableSpec("user", 10**9), "dim is 1000000000"),
        (lambda: TableSpec("user", 16.0), "dim is 16.0"),
        (lambda: TableSpec("user", "16"), "dim is '16'"),
        (lambda: TableSpec("user", 16, "float64"), "dtype is 'float64'.*'bfloat16', 'float16' or 'int64'"),
        (lambda: TableSpec("user", 16, optimizer="Adagrad"), "optimizer is 'Adagrad'"),
        (lambda: TableSpec("user", 16, seed=-1), "seed is -1"),
        (lambda: TableSpec("user", 16, seed=2**64), "seed is 18446744073709551616"),
        (lambda: TableSpec("user", 16, non_finite="Ignore"), "non_finite is 'Ignore'"),
        (lambda: TableSpec("sums", 1, "int64", SGD()), "dtype is int64 and optimizer is SGD.*wants Add"),
        (lambda: TableSpec("sums", 1, "int64", initializer=Normal()), "initializer is Normal.*wants Zeros"),
        (lambda: TableSpec("user", 16, features=["a"]), "features is"),
        (lambda: TableSpec("user"), "dim is missing"),
    ],
)
def test_a_wrong_value_is_refused_by_name(make: Any, message: str) -> None:
    """BadRequest names the field as Python spells it, the value found and what is wanted."""
    with pytest.raises(BadRequest, match=message):
        make()


@pytest.mark.parametrize("name", ["a", "0", "user-item_2", "a" * 63])
def test_table_names_are_lower_case_words(name: str) -> None:
    """Letters, digits, inner dashes and underscores, at most 63 of them."""
    assert TableSpec(name, 1).name == name


def test_the_job_files_spelling_is_camel_case() -> None:
    """What a job file says of a table, and what Python says, are equal."""
    text = json.dumps(
        [
            {
                "name": "fields",
                "dim": 9,
                "optimizer": {"type": "Adagrad", "learningRate": 0.05, "initialAccumulator": 1e-8},
                "initializer": {"type": "Normal", "stddev": 0.01},
                "nonFinite": "Zero",
            }
        ]
    )
    assert load_tables(text) == [
        TableSpec("fields", 9, optimizer=Adagrad(0.05, 1e-8), initializer=Normal(0.01), non_finite="Zero")
    ]


def test_tables_survive_json() -> None:
    """Every optimizer, initializer and the highest seed come back equal from TABLEBAY_TABLES."""
    assert load_tables(dump_tables(EVERY_KIND)) == EVERY_KIND


@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: spec.name)
def test_tables_survive_the_wire(spec: TableSpec) -> None:
    """A spec equals the one read back from its message's bytes."""
    message = spec.message()
    assert TableSpec.from_message(type(message).FromString(message.SerializeToString())) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ('[{"name": "user"}]', "0.dim: Field required"),
        (
            '[{"name": "user", "dim": 8, "optimizer": {"type": "adamm"}}]',
            "'adamm'.*'SGD', 'Momentum', .*'Adam', .*'Add'",
        ),
        ('[{"name": "user", "dim": 8, "optimizer": {"learningRate": 1}}]', "0.optimizer: .*'type'"),
        (
            '[{"name": "user", "dim": 8, "optimizer": {"type": "SGD", "learningrate": 1}}]',
            "learningrate: Unexpected",
        ),
        ('[{"name": "user", "dim": 8, "features": ["a"]}]', "0.features: Unexpected"),
        ('[{"name": "user", "dim": 8}, {"name": "user", "dim": 8}]', "user named more than once"),
    ],
)
def test_wrong_json_is_refused_with_the_path(text: str, message: str) -> None:
    """BadRequest names the table by its place, and the field."""
    with pytest.raises(BadRequest, match=message):
        load_tables(text)


def test_a_message_with_an_unknown_optimizer_is_refused() -> None:
    """A newer peer's optimizer is named together with those that exist."""
    message = TableSpec("user", 8).message()
    message.optimizer = "Lamb"
    with pytest.raises(BadRequest, match="optimizer is 'Lamb', wanted one of SGD, Momentum, .*, Add"):
        TableSpec.from_message(message)
    message = TableSpec("user", 8).message()
    message.optimizer_parameters["momentum"] = 0.9
    with pytest.raises(BadRequest, match="momentum"):
        TableSpec.from_message(message)


def test_differences_name_each_field_and_parameter() -> None:
    """One line a difference, parameters apart where the type is the same; only the fields asked for."""
    found = TableSpec("user", 16, optimizer=Adagrad(0.05), initializer=Normal(), seed=1)
    wanted = TableSpec("user", 32, optimizer=Adagrad(0.1), initializer=Zeros(), seed=1)
    assert differences(found, wanted) == [
        "dim: found 16, wanted 32",
        "optimizer.learning_rate: found 0.05, wanted 0.1",
        "initializer: found Normal(stddev=0.01, mean=0.0), wanted Zeros()",
    ]
    assert differences(found, wanted, fields=["dim"]) == ["dim: found 16, wanted 32"]
    assert differences(found, found) == []
