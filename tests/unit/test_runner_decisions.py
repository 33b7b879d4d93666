"""What a local run does when a process ends."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from tablebay.client.local.decisions import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    SERVER_DEATHS_MAX,
    Ended,
    Fail,
    Finish,
    Restart,
    Standing,
    Wait,
    decide,
    how,
)
from tablebay.client.policies import FailurePolicy

LOG = "logs/worker-1.log"


def worker(code: int) -> Ended:
    """Worker 1, ended."""
    return Ended(role="worker", number=1, code=code, log=LOG)


def standing(
    *, restarts: int = 0, restarts_max: int = 3, restarts_of_rank: int = 0, workers_left: int = 1
) -> Standing:
    """A run with one more worker and all restarts left, unless told otherwise."""
    return Standing(
        restarts=restarts,
        restarts_max=restarts_max,
        restarts_of_rank=restarts_of_rank,
        workers_left=workers_left,
    )


def test_a_worker_that_is_done_waits_for_the_others() -> None:
    """Code 0 with workers left asks for nothing."""
    assert decide(worker(0), standing(workers_left=1)) == Wait()


def test_the_last_worker_that_is_done_finishes_the_job() -> None:
    """Code 0 with no worker left is the end, however many restarts were used."""
    assert decide(worker(0), standing(workers_left=0, restarts=3)) == Finish()


@pytest.mark.parametrize("code", [1, 42, -signal.SIGKILL, -signal.SIGSEGV])
def test_a_failed_worker_is_started_again(code: int) -> None:
    """Any code but 0, and any signal, uses a restart."""
    assert decide(worker(code), standing()) == Restart(BACKOFF_FIRST_S)


def policy(**rule: Any) -> FailurePolicy:
    """A policy of one rule."""
    return FailurePolicy.model_validate({"rules": [{"name": "one", **rule}]})


def test_a_rule_of_the_failure_policy_decides_first() -> None:
    """By exit code, where a signal is 128 and its number; what it ignores is not counted, though no restart is left."""
    bug = policy(target="Workers", onExitCodes={"operator": "In", "values": [42, 139]}, action="FailJob")
    for code in (42, -signal.SIGSEGV):
        action = decide(worker(code), replace(standing(), policy=bug))
        assert isinstance(action, Fail)
        assert action.reason.startswith("rule one: worker 1 ")
    assert decide(worker(1), replace(standing(), policy=bug)) == Restart(BACKOFF_FIRST_S)
    assert decide(worker(0), replace(standing(), policy=bug)) == Wait()
    ignored = policy(onExitCodes={"operator": "NotIn", "values": [42]}, action="Ignore")
    none_left = replace(standing(restarts=3, restarts_max=3), policy=ignored)
    assert decide(worker(1), none_left) == Restart(BACKOFF_FIRST_S, ignored=True)
    assert isinstance(decide(worker(42), none_left), Fail)
    server = Ended(role="server", number=0, code=42, log=LOG)
    everyone = policy(onExitCodes={"operator": "In", "values": [42]}, action="FailJob")
    durable = replace(standing(), durable=True, server_deaths=1)
    assert isinstance(decide(server, replace(durable, policy=everyone)), Fail)
    assert isinstance(decide(server, replace(durable, policy=bug)), Restart)


def test_a_success_policy_may_wait_for_fewer() -> None:
    """Any: the first that ends well. Index0: rank 0, whoever else is done."""
    assert decide(worker(0), replace(standing(workers_left=2), success="Any")) == Finish()
    assert decide(worker(0), replace(standing(workers_left=2), success="Index0")) == Wait()
    zero = Ended(role="worker", number=0, code=0, log=LOG)
    assert decide(zero, replace(standing(workers_left=2), success="Index0")) == Finish()
    assert decide(zero, standing(workers_left=2)) == Wait()


def test_each_restart_of_a_rank_waits_longer_up_to_a_bound() -> None:
    """The wait doubles with each restart of the same rank and stays bounded after any number of them."""
    waits = [
        decide(worker(1), standing(restarts_max=10**6, restarts_of_rank=number)) for number in range(10_000)
    ]
    assert waits[:3] == [Restart(BACKOFF_FIRST_S), Restart(2 * BACKOFF_FIRST_S), Restart(4 * BACKOFF_FIRST_S)]
    assert waits[-1] == Restart(BACKOFF_MAX_S)


def test_a_backoff_of_the_job_file_counts_in_a_local_run_too() -> None:
    """By the restarts that count, of whatever rank; what a rule ignores is begun again soon."""
    own = FailurePolicy.model_validate({"backoff": {"initialSeconds": 3, "factor": 10, "maxSeconds": 50}})
    waits = [
        decide(worker(1), replace(standing(restarts=number, restarts_max=9), policy=own))
        for number in range(4)
    ]
    assert waits == [Restart(3.0), Restart(30.0), Restart(50.0), Restart(50.0)]
    rule = {"name": "one", "onExitCodes": {"operator": "In", "values": [3]}, "action": "Ignore"}
    ignoring = FailurePolicy.model_validate({"backoff": {"initialSeconds": 3}, "rules": [rule]})
    assert decide(worker(3), replace(standing(), policy=ignoring)) == Restart(BACKOFF_FIRST_S, ignored=True)


def test_the_restarts_of_all_workers_count_together() -> None:
    """A worker that never failed before is not restarted when the others have used the job's restarts up."""
    action = decide(worker(3), standing(restarts=3, restarts_max=3, restarts_of_rank=0))
    assert action == Fail(
        f"worker 1 exited with code 3 and no restart is left (3 of 3 used); its log is {LOG}"
    )


def test_a_job_without_restarts_fails_with_its_first_worker() -> None:
    """maxRestarts 0 means what it says."""
    action = decide(worker(-signal.SIGKILL), standing(restarts_max=0))
    assert action == Fail(
        f"worker 1 was killed by SIGKILL and no restart is left (0 of 0 used); its log is {LOG}"
    )


@pytest.mark.parametrize("code", [0, 1, -signal.SIGKILL])
def test_a_server_that_ends_fails_the_job_and_says_that_its_rows_are_lost(code: int) -> None:
    """There is no restart for a server: the next one would begin with empty tables."""
    action = decide(Ended(role="server", number=0, code=code, log="logs/server-0.log"), standing())
    assert isinstance(action, Fail)
    assert action.reason.startswith(f"server 0 {how(code)}; without checkpoints its rows are lost")
    assert "\n" not in action.reason


@pytest.mark.parametrize("code", [0, 1, -signal.SIGKILL])
def test_a_server_that_makes_checkpoints_is_started_again(code: int) -> None:
    """Whatever ended it, sooner at first; the workers' restarts are not touched."""
    waits = []
    for deaths in range(1, SERVER_DEATHS_MAX + 1):
        now = Standing(
            durable=True, server_deaths=deaths, restarts=3, restarts_max=3, restarts_of_rank=0, workers_left=2
        )
        action = decide(Ended(role="server", number=0, code=code, log="l"), now)
        assert isinstance(action, Restart)
        waits.append(action.after_s)
    assert waits == sorted(waits)
    assert waits[0] < 1.0


def test_a_server_that_never_becomes_ready_again_fails_the_job() -> None:
    """It is not started for ever, and the cause has its last words."""
    now = Standing(
        durable=True,
        server_deaths=SERVER_DEATHS_MAX + 1,
        restarts=0,
        restarts_max=3,
        restarts_of_rank=0,
        workers_left=2,
    )
    action = decide(Ended(role="server", number=1, code=1, log="l", said="no port"), now)
    assert isinstance(action, Fail)
    assert action.reason == (
        "server 1 exited with code 1 (no port), the 4th time before it was ready again; its log is l"
    )


def test_what_a_process_said_last_is_part_of_the_cause() -> None:
    """A command that could not even begin says why in its last line; one that was killed does not know."""
    said = Ended(role="server", number=0, code=1, log="l", said="tablebay-server: no such option")
    action = decide(said, standing())
    assert isinstance(action, Fail)
    assert "exited with code 1 (tablebay-server: no such option); " in action.reason
    killed = Ended(role="server", number=0, code=-9, log="l", said="step 7")
    action = decide(killed, standing())
    assert isinstance(action, Fail)
    assert "step 7" not in action.reason


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with code 0"),
        (127, "exited with code 127"),
        (-9, "was killed by SIGKILL"),
        (-11, "was killed by SIGSEGV"),
        (-63, "was killed by signal 63"),
    ],
)
def test_codes_and_signals_are_said_in_words(code: int, words: str) -> None:
    """Negative codes are signals, by name where they have one."""
    assert how(code) == words


def test_a_server_that_cannot_use_its_checkpoints_is_not_started_again() -> None:
    """Code 3 is the same at each start; without checkpoints it is any other end."""
    ended = Ended(
        role="server", number=0, code=3, log="server-0.log", said="tablebay-server: d: none is whole"
    )
    durable = Standing(
        durable=True, server_deaths=1, restarts=0, restarts_max=3, restarts_of_rank=0, workers_left=1
    )
    found = decide(ended, durable)
    assert found == Fail(
        "server 0 cannot use its checkpoints (tablebay-server: d: none is whole), so the job cannot go on; its log is "
        "server-0.log"
    )
    assert isinstance(decide(replace(ended, code=1), durable), Restart)
    assert isinstance(decide(ended, replace(durable, durable=False)), Fail)
