"""T2: a server killed at each place where that is worst, while workers push: every row is exact all the same."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from faults.servers import Servers
from faults.workers import Worker, check_all, expected, held, repro, require_equal

from tablebay.native import _core

ROOT = Path(__file__).resolve().parents[2]
POINTS = (
    *("push.after_validate", "push.mid_apply", "push.before_whole"),
    *(
        "cut.after_begin",
        "cut.mid_copy",
        "files.before_finish",
        "commit.before_manifest",
        "commit.after_manifest",
    ),
    "restore.before_finish",
)
_PLACE = re.compile(r'(?:TABLEBAY_FAILPOINT|failpoint)\("([a-z_.]+)"\)')
WORKERS, STEPS, SEED = 2, 2000, 1
HIT_S = 30.0


def test_each_place_in_the_sources_has_a_test() -> None:
    """And each test a place."""
    sources = [*(ROOT / "native" / "src").glob("*.cc"), *(ROOT / "ps_server").rglob("*.py")]
    found = [name for path in sources for name in _PLACE.findall(path.read_text())]
    assert sorted(found) == sorted(POINTS)


def test_a_core_that_is_released_has_no_failpoints() -> None:
    """Neither the places' names nor the variable that would arm them."""
    if hasattr(_core, "failpoint"):
        pytest.fail("this core is built with TABLEBAY_FAILPOINTS")
    content = Path(_core.__file__).read_bytes()
    assert b"handle_push" in content
    for name in (*POINTS, "TABLEBAY_FAILPOINT", "failpoint"):
        assert name.encode() not in content, name


@pytest.mark.failpoints
@pytest.mark.parametrize("point", POINTS)
def test_T2_G1_G3_G5_a_server_killed_at_the_worst_place_loses_nothing(tmp_path: Path, point: str) -> None:
    """It is killed there once, comes back, and training ends with the rows of a run in which nothing happened."""
    assert hasattr(_core, "failpoint"), "wanted a core built with TABLEBAY_FAILPOINTS: make test-failpoints"
    armed, hit = tmp_path / "armed", tmp_path / "armed.hit"
    chance = random.Random(f"{SEED} {point}")
    environment = {"TABLEBAY_FAILPOINT": f"{point}:{armed}"}
    with Servers(tmp_path, 2, "--checkpoint-every-seconds", "0.3", environment=environment) as servers:
        workers = [Worker(servers.addresses, rank, WORKERS, STEPS) for rank in range(WORKERS)]
        for worker in workers:
            worker.start()
        time.sleep(chance.uniform(0.3, 1.0))
        before = [servers.pid(index) for index in range(2)]
        armed.touch()
        if point.startswith("restore."):
            servers.kill(chance.randrange(2))
        end = time.monotonic() + HIT_S
        while not hit.exists():
            assert time.monotonic() < end, f"{point} was not hit within {HIT_S:g} s"
            assert any(worker.is_alive() for worker in workers), f"all was done before {point} was hit"
            time.sleep(0.01)
        check_all(workers)
        assert [servers.pid(index) for index in range(2)] != before, f"nobody died at {point}"
        require_equal(held(servers.addresses), expected(WORKERS, STEPS), repro(__file__, SEED))
