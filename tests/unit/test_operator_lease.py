"""The operator's lease: replicas that contend for it at an API server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.test_operator_cluster import Api, refusal, serving, use

from tablebay.operator import lease as subject
from tablebay.operator.cluster import LEASES, SERVICE_ACCOUNTS, Cluster
from tablebay.operator.lease import Lease

DURATION_S = 1


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names; a lease lasts for a second."""
    monkeypatch.setattr(subject, "DURATION_S", DURATION_S)
    monkeypatch.setattr(subject, "RENEW_WITHIN_S", 0.6)
    monkeypatch.setattr(subject, "RETRY_S", 0.05)
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


def lease_of(identity: str) -> Lease:
    return Lease(Cluster(), "ns", "operator", identity)


def holder(api: Api) -> str:
    """Whose it is, by the API server."""
    found: str = api.objects["leases", "ns", "operator"]["spec"]["holderIdentity"]
    return found


def test_the_first_takes_it_and_the_second_waits(api: Api) -> None:
    """For as long as the first renews it."""

    async def run() -> None:
        first, second = lease_of("first"), lease_of("second")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(2.5 * DURATION_S)
        assert (first.held, second.held, holder(api)) == (True, False, "first")
        assert not keeping.done()
        keeping.cancel()
        waiting.cancel()

    asyncio.run(run())
    spec = api.objects["leases", "ns", "operator"]["spec"]
    assert spec["leaseDurationSeconds"] == DURATION_S
    assert spec["leaseTransitions"] == 0
    assert spec["acquireTime"] < spec["renewTime"]


def test_of_many_that_begin_at_once_one_takes_it(api: Api) -> None:
    """Both that see no lease make it, and both that see an old one take it over: the API server takes one of them."""

    async def run() -> None:
        leases = [lease_of(str(number)) for number in range(6)]
        tasks = [asyncio.create_task(one.acquire()) for one in leases]
        await asyncio.sleep(0.5)
        held = [one for one in leases if one.held]
        assert len(held) == 1
        assert holder(api) == held[0]._identity
        for task in tasks:
            task.cancel()

    asyncio.run(run())


def test_a_lease_that_is_not_renewed_is_taken_over_when_it_ends(api: Api) -> None:
    """Not before, by the clock of the one that waits."""

    async def run() -> float:
        first, second = lease_of("first"), lease_of("second")
        await first.acquire()
        began = time.monotonic()
        await asyncio.wait_for(second.acquire(), 10)
        return time.monotonic() - began

    assert DURATION_S <= asyncio.run(run()) < DURATION_S + 3
    assert holder(api) == "second"
    assert api.objects["leases", "ns", "operator"]["spec"]["leaseTransitions"] == 1


def test_the_holders_clock_is_not_trusted(api: Api) -> None:
    """A holder whose clock is a day behind keeps it while it renews, and one a day ahead loses it when it does not."""

    async def run() -> None:
        first, second = lease_of("first"), lease_of("second")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        for number in range(8):
            body = api.objects["leases", "ns", "operator"]
            body["spec"]["renewTime"] = f"2020-01-01T00:00:{number:02d}.000000Z"
            api.put(LEASES, body)
            await asyncio.sleep(0.25)
        assert not second.held
        body["spec"]["renewTime"] = "2120-01-01T00:00:00.000000Z"
        api.put(LEASES, body)
        await asyncio.wait_for(waiting, 10)
        assert second.held

    asyncio.run(run())


def test_a_lease_that_is_given_up_is_taken_at_once(api: Api) -> None:
    """Without waiting for its end; it can be given up once."""

    async def run() -> float:
        first, second = lease_of("first"), lease_of("second")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await first.release()
        await asyncio.wait_for(waiting, 10)
        took = time.monotonic() - began
        assert not first.held
        await first.release()
        assert holder(api) == "second"
        return took

    assert asyncio.run(run()) < 0.7 * DURATION_S


def test_a_lease_that_another_has_is_not_given_up_in_its_place(api: Api) -> None:
    """A holder that was overtaken unseen leaves the lease as it is."""

    async def run() -> None:
        first = lease_of("first")
        await first.acquire()
        body = api.objects["leases", "ns", "operator"]
        body["spec"]["holderIdentity"] = "second"
        api.put(LEASES, body)
        await first.release()

    asyncio.run(run())
    assert holder(api) == "second"


def test_the_loss_to_another_is_noticed_at_once(api: Api) -> None:
    """keep() returns."""

    async def run() -> None:
        first = lease_of("first")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        await asyncio.sleep(0.2)
        body = api.objects["leases", "ns", "operator"]
        body["spec"].update(holderIdentity="second", renewTime="2026-01-02T03:04:05.000000Z")
        api.put(LEASES, body)
        await asyncio.wait_for(keeping, 0.5)
        assert not first.held

    asyncio.run(run())


def test_a_short_trouble_of_the_api_server_does_not_lose_it(api: Api) -> None:
    """Refusals for less than the time within which it must be renewed."""

    async def run() -> None:
        first = lease_of("first")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        api.fault = lambda method, path, query: refusal(503, "ServiceUnavailable")
        await asyncio.sleep(0.3)
        api.fault = lambda method, path, query: None
        await asyncio.sleep(0.7)
        assert first.held
        assert not keeping.done()
        keeping.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_long_trouble_of_the_api_server_loses_it_before_another_may_take_it(api: Api, how: str) -> None:
    """Whether it refuses or does not answer: keep() returns before the lease ends for the others."""

    async def run() -> float:
        first = lease_of("first")
        await first.acquire()
        keeping = asyncio.create_task(first.keep())
        await asyncio.sleep(0.2)

        def fault(method: str, path: str, query: dict[str, str]) -> tuple[int, object]:
            if how == "silent":
                # The whole server stands still, as one behind a network that drops packets would.
                time.sleep(1.5)
            return refusal(503, "ServiceUnavailable")

        api.fault = fault
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(keeping, 5)
        assert not first.held
        return time.monotonic() - began

    # A moment more for each try than the time within which it must be renewed; below the duration of 1 s.
    assert asyncio.run(run()) < DURATION_S


def test_a_renewal_that_comes_in_between_does_not_keep_it(api: Api) -> None:
    """Given up although the first write of that is refused for another's having been there first."""
    refused: list[str] = []

    async def run() -> None:
        first = lease_of("first")
        await first.acquire()

        def fault(method: str, path: str, query: dict[str, str]) -> tuple[int, object] | None:
            if method != "PUT" or refused:
                return None
            refused.append(path)
            return refusal(409, "Conflict")

        api.fault = fault
        await first.release()

    asyncio.run(run())
    assert len(refused) == 1
    assert api.objects["leases", "ns", "operator"]["spec"]["holderIdentity"] == ""


def test_it_goes_with_the_account_that_it_is_given(api: Api) -> None:
    """Of its own when it is made; one that is there without an owner gets it from whoever takes it over."""
    account = api.put(SERVICE_ACCOUNTS, {"metadata": {"name": "operator", "namespace": "ns"}})
    owner = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "name": "operator",
        "uid": account["metadata"]["uid"],
    }

    def owners() -> list[dict[str, str]]:
        found: list[dict[str, str]] = api.objects["leases", "ns", "operator"]["metadata"]["ownerReferences"]
        return found

    async def run() -> None:
        await Lease(Cluster(), "ns", "operator", "one", account="operator").acquire()
        assert owners() == [owner]
        api.remove(LEASES, "operator", "ns")
        first = lease_of("first")
        await first.acquire()
        assert owners() == []
        await first.release()
        await Lease(Cluster(), "ns", "operator", "second", account="operator").acquire()
        assert owners() == [owner]
        api.remove(LEASES, "operator", "ns")
        await Lease(Cluster(), "ns", "operator", "third", account="not there").acquire()
        assert owners() == []

    asyncio.run(run())
