"""A server's settings: where they come from, and what a wrong one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tablebay.client.tables import Adagrad, TableSpec
from tablebay.ps_server import memory
from tablebay.ps_server.config import BadSetting, read_config
from tablebay.ps_server.main import main

MIB = 1024 * 1024


def test_without_settings_a_server_is_alone_and_open_to_this_machine_only() -> None:
    """The documented defaults."""
    config = read_config([], {})
    assert (config.host, config.data_port, config.index) == ("127.0.0.1", 7070, 0)
    assert config.servers == ("127.0.0.1:7070",)
    assert (config.job, config.generation, config.tables) == ("local", 0, ())
    assert (config.message_bytes_max, config.keys_max, config.clients_max) == (64 * MIB, 16 * MIB, 1024)
    assert config.threads >= 8
    assert config.memory_limit_bytes == memory.default_limit()
    assert (config.log_level, config.log_format, config.exit_with_parent) == ("info", "json", False)


def test_each_setting_may_come_from_the_environment() -> None:
    """As the local runner and the operator give them."""
    config = read_config(
        [],
        {
            "TABLEBAY_HOST": "::",
            "TABLEBAY_DATA_PORT": "41000",
            "TABLEBAY_JOB": "flights",
            "TABLEBAY_GENERATION": "4",
            "TABLEBAY_INDEX": "1",
            "TABLEBAY_SERVERS": "ps-{0..1}.ps:7070",
            "TABLEBAY_TABLES": '[{"name": "user", "dim": 4, "optimizer": {"type": "Adagrad", "learningRate": 0.1}}]',
            "TABLEBAY_MEMORY_LIMIT_BYTES": "0",
            "TABLEBAY_GRACE_SECONDS": "2.5",
            "TABLEBAY_LOG_LEVEL": "WARNING",
            "TABLEBAY_LOG_FORMAT": "text",
        },
    )
    assert (config.host, config.data_port, config.job, config.generation) == ("::", 41000, "flights", 4)
    assert (config.index, config.servers) == (1, ("ps-0.ps:7070", "ps-1.ps:7070"))
    assert config.tables == (TableSpec("user", 4, optimizer=Adagrad(0.1)),)
    assert (config.memory_limit_bytes, config.grace_s) == (0, 2.5)
    assert (config.log_level, config.log_format) == ("warning", "text")


def test_an_argument_wins_over_the_environment() -> None:
    """And an empty variable counts as none."""
    config = read_config(
        ["--data-port", "1234", "--exit-with-parent"], {"TABLEBAY_DATA_PORT": "99", "TABLEBAY_JOB": ""}
    )
    assert (config.data_port, config.job, config.exit_with_parent) == (1234, "local", True)
    assert read_config(["--host", "[::1]"], {}).servers == ("[::1]:7070",)


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (["--data-port", "0"], {}, "--data-port is '0', wanted a whole number from 1 to 65533"),
        (["--data-port", "65534"], {}, "--data-port is '65534'"),
        ([], {"TABLEBAY_DATA_PORT": "http"}, "TABLEBAY_DATA_PORT is 'http', wanted a whole number"),
        ([], {"TABLEBAY_DATA_PORT": "9" * 5000}, "TABLEBAY_DATA_PORT is '999"),
        (
            [],
            {"TABLEBAY_INDEX": "2", "TABLEBAY_SERVERS": "a:1,b:1"},
            "TABLEBAY_INDEX is 2, wanted 0 to 1: 2 servers",
        ),
        ([], {"TABLEBAY_SERVERS": "a"}, "TABLEBAY_SERVERS: address 'a': wanted host:port"),
        ([], {"TABLEBAY_JOB": "Flights!"}, "TABLEBAY_JOB is 'Flights!', wanted lower-case"),
        (["--host", "a b"], {}, "--host is 'a b', wanted an address"),
        (["--grace-seconds", "-1"], {}, "--grace-seconds is '-1', wanted seconds from 0"),
        (["--grace-seconds", "nan"], {}, "--grace-seconds is 'nan'"),
        ([], {"TABLEBAY_LOG_LEVEL": "loud"}, "TABLEBAY_LOG_LEVEL is 'loud', wanted debug or info"),
        ([], {"TABLEBAY_LOG_FORMAT": "xml"}, "TABLEBAY_LOG_FORMAT is 'xml', wanted text or json"),
        (["--message-bytes-max", "10"], {}, "--message-bytes-max is '10', wanted a whole number from 65536"),
        ([], {"TABLEBAY_MEMORY_LIMIT_BYTES": "1.5GiB"}, "TABLEBAY_MEMORY_LIMIT_BYTES is '1.5GiB'"),
        ([], {"TABLEBAY_TABLES": "["}, "TABLEBAY_TABLES: tables:"),
        ([], {"TABLEBAY_TABLES": '[{"name": "u", "dim": 0}]'}, "TABLEBAY_TABLES: tables: 0.*dim"),
        ([], {"TABLEBAY_TABLES": '[{"name": "u", "dim": 1, "wat": 1}]'}, "TABLEBAY_TABLES: tables: 0.*wat"),
    ],
)
def test_a_wrong_setting_is_one_line_with_name_found_and_wanted(
    arguments: list[str],
    environment: dict[str, str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 2, and nothing else on standard error."""
    with pytest.raises(BadSetting, match=said):
        read_config(arguments, environment)
    for name in ("TABLEBAY_SERVERS", "TABLEBAY_INDEX", "TABLEBAY_TABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--wat"], ["--data-port"], ["x"], ["--data", "1"]])
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown options, missing values, abbreviations."""
    with pytest.raises(SystemExit) as ended:
        read_config(arguments, {})
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("tablebay-server: ")
    assert message.count("\n") == 1


# -- memory --


def system(root: Path, *, machine_kib: int, cgroup: str, **limits: str) -> Path:
    """A /proc and a /sys of a machine; limits by path, with __ for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal:       {machine_kib} kB\nMemFree: 1 kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, text in limits.items():
        file = root / "sys/fs/cgroup" / path.replace("__", "/").replace("_max", ".max")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_the_memory_limit_is_085_of_the_control_groups(tmp_path: Path) -> None:
    """Version 2, in a container, where the own group is the root."""
    root = system(tmp_path, machine_kib=10 * 1024 * 1024, cgroup="0::/\n", memory_max=f"{1000 * MIB}\n")
    assert memory.default_limit(root) == int(0.85 * 1000 * MIB)


def test_the_least_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    """A group's own limit may be above its parent's, or absent."""
    root = system(
        tmp_path,
        machine_kib=10 * 1024 * 1024,
        cgroup="0::/pods/one\n",
        pods__one__memory_max="max\n",
        pods__memory_max=f"{700 * MIB}\n",
        memory_max=f"{900 * MIB}\n",
    )
    assert memory.default_limit(root) == int(0.85 * 700 * MIB)


def test_version_1_control_groups_are_read_too(tmp_path: Path) -> None:
    """Also when the path is the host's and the own group is the mount point; "no limit" there is a huge number."""
    root = system(tmp_path, machine_kib=4 * 1024 * 1024, cgroup="5:cpu:/x\n4:memory:/kubepods/pod1\n")
    folder = root / "sys/fs/cgroup/memory"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{512 * MIB}\n")
    assert memory.default_limit(root) == int(0.85 * 512 * MIB)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory.default_limit(root) == int(0.85 * 4096 * MIB)


def test_without_a_control_group_it_is_085_of_the_machine(tmp_path: Path) -> None:
    """And a limit above the machine's memory is none."""
    root = system(tmp_path, machine_kib=2048 * 1024, cgroup="", memory_max=f"{9000 * MIB}\n")
    assert memory.default_limit(root) == int(0.85 * 2048 * MIB)
    assert memory.default_limit(tmp_path / "nothing") > 0


def test_a_table_of_the_job_file_becomes_a_setting() -> None:
    """What the runner writes is what the server reads."""
    spec = {
        "name": "fields",
        "dim": 9,
        "initializer": {"type": "Normal", "stddev": 0.01},
        "nonFinite": "Zero",
    }
    (table,) = read_config([], {"TABLEBAY_TABLES": json.dumps([spec])}).tables
    assert (table.name, table.dim, table.non_finite) == ("fields", 9, "Zero")
