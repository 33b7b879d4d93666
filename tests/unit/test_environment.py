"""Names, ports and addresses that processes of a job find in their environment."""

from __future__ import annotations

import pytest

from tablebay.client import environment
from tablebay.client.environment import WorkerEnvironment, expand_pattern, split_address
from tablebay.client.errors import BadRequest


@pytest.mark.parametrize(
    ("pattern", "addresses"),
    [
        ("localhost:7070", ["localhost:7070"]),
        ("a:1,b:2", ["a:1", "b:2"]),
        (" a:1 , b:2 ", ["a:1", "b:2"]),
        ("[::1]:7070", ["[::1]:7070"]),
        ("ps-{0..2}.ps:7070", ["ps-0.ps:7070", "ps-1.ps:7070", "ps-2.ps:7070"]),
        ("127.0.0.1:{41000..41006..3}", ["127.0.0.1:41000", "127.0.0.1:41003", "127.0.0.1:41006"]),
        ("127.0.0.1:{41000..41005..3}", ["127.0.0.1:41000", "127.0.0.1:41003"]),
        ("h{0..1}:{5..6},x:9", ["h0:5", "h0:6", "h1:5", "h1:6", "x:9"]),
        ("h{5..5}:1", ["h5:1"]),
    ],
)
def test_a_pattern_is_what_the_shell_makes_of_it(pattern: str, addresses: list[str]) -> None:
    """In order of the indices: braces from left to right, commas apart."""
    assert expand_pattern(pattern) == addresses


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "wanted host:port"),
        ("localhost", "wanted host:port"),
        ("localhost:", "wanted host:port"),
        (":7070", "wanted host:port"),
        ("localhost:0", "a data port of 1 to 65533"),
        ("localhost:65534", "a data port of 1 to 65533"),
        ("localhost:7070/", "wanted host:port"),
        ("http://localhost:7070", "wanted host:port"),
        ("user@localhost:7070", "wanted host:port"),
        ("local host:7070", "wanted host:port"),
        ("::1:7070", "wanted host:port"),
        ("localhost:٧٠٧٠", "wanted host:port"),
        ("a:1,,b:2", "wanted host:port"),
        ("a:1,a:1", "a:1 is named twice"),
        ("a:1,a:01", "a:1 is named twice"),
        ("h{1..0}:1", r"found '\{1..0\}'.*first <= last"),
        ("h{a..c}:1", r"wanted \{first..last\}"),
        ("h{00..10}:1", r"found '\{00..10\}'"),
        ("h{0..4..0}:1", r"found '\{0..4..0\}'"),
        ("h{0..}:1", r"found '\{0..\}'"),
        ("h{x:1", "wanted host:port"),
        ("h{0..1024}:1", "more than 1024"),
        ("h{0..4000000000}:{1..9}", "more than 1024"),
        ("x" * 10_000, "wanted host:port"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, said: str) -> None:
    """With the text found, shortened, and the form wanted; however many addresses it stands for."""
    with pytest.raises(BadRequest, match=said) as raised:
        expand_pattern(pattern)
    assert len(str(raised.value)) < 600


def test_the_other_ports_are_above_the_data_port() -> None:
    """HTTP one above, control two above; the documented defaults agree."""
    assert environment.http_port(environment.DATA_PORT) == environment.HTTP_PORT == 7071
    assert environment.control_port(environment.DATA_PORT) == environment.CONTROL_PORT == 7072
    assert split_address("h:65533") == ("h", environment.DATA_PORT_MAX)


def test_a_worker_reads_who_it_is() -> None:
    """Everything given, and the defaults."""
    given = {
        "TABLEBAY_JOB": "flights",
        "TABLEBAY_RANK": "1",
        "TABLEBAY_WORKERS": "2",
        "TABLEBAY_GENERATION": "3",
        "TABLEBAY_SERVERS": "ps-{0..1}:7070",
    }
    assert WorkerEnvironment.read(given) == WorkerEnvironment("flights", 1, 2, 3, "ps-{0..1}:7070")
    assert WorkerEnvironment.read({"TABLEBAY_SERVERS": "a:1"}) == WorkerEnvironment("", None, 1, 0, "a:1")
    assert WorkerEnvironment.read({"TABLEBAY_SERVERS": "a:1", "TABLEBAY_RANK": ""}).rank is None


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({}, "TABLEBAY_SERVERS is not set"),
        ({"TABLEBAY_RANK": "x"}, "TABLEBAY_RANK is 'x', wanted a whole number"),
        ({"TABLEBAY_RANK": "-1"}, "TABLEBAY_RANK is '-1'"),
        ({"TABLEBAY_RANK": "1.0"}, "TABLEBAY_RANK is '1.0'"),
        ({"TABLEBAY_RANK": str(2**32)}, "from 0 to 4294967295"),
        ({"TABLEBAY_RANK": "0"}, "TABLEBAY_WORKERS is not set, but TABLEBAY_RANK is"),
        ({"TABLEBAY_RANK": "2", "TABLEBAY_WORKERS": "2"}, "wanted a rank below the number of workers"),
        ({"TABLEBAY_WORKERS": "0"}, "TABLEBAY_WORKERS is '0'"),
        ({"TABLEBAY_GENERATION": "9" * 400}, "TABLEBAY_GENERATION is '999"),
    ],
)
def test_a_wrong_variable_is_named(variables: dict[str, str], said: str) -> None:
    """With the value found and the value wanted."""
    servers = {} if "TABLEBAY_SERVERS is not set" in said else {"TABLEBAY_SERVERS": "a:1"}
    with pytest.raises(BadRequest, match=said):
        WorkerEnvironment.read({**servers, **variables})


def test_what_says_who_a_process_is_is_not_handed_on() -> None:
    """A run inside a run must not take the outer one's rank; settings of logs pass."""
    identity = ("TABLEBAY_JOB", "TABLEBAY_RANK", "TABLEBAY_SERVERS", "TABLEBAY_TABLES", "RANK", "MASTER_ADDR")
    assert all(environment.is_identity(name) for name in identity)
    others = ("TABLEBAY_LOG_LEVEL", "TABLEBAY_LOG_FORMAT", "PATH", "TABLEBAY_MEMORY_LIMIT_BYTES")
    assert not any(environment.is_identity(name) for name in others)
