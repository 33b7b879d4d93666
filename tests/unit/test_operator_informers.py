"""The operator's informers, against an API server on loopback whose watches break in every way."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from unit.test_operator_cluster import Api, refusal, serving, thing, use

from tablebay.client.environment import JOB_LABEL
from tablebay.operator import informers
from tablebay.operator.cluster import SERVICES, Cluster
from tablebay.operator.informers import Informer, Store
from tablebay.operator.projections import Child, child
from tablebay.operator.workqueue import Key

A, B = ("ads", "a"), ("ads", "b")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """An API server that the kubeconfig names; what is slow on purpose is quick."""
    monkeypatch.setattr(informers, "RETRY_FIRST_S", 0.01)
    monkeypatch.setattr(informers, "PAGE", 2)
    with serving() as found:
        use(found, tmp_path, monkeypatch)
        yield found


class Watched:
    """An informer of Services, and the jobs it told of."""

    def __init__(self, *namespaces: str) -> None:
        self.told: list[Key] = []
        self.states: list[tuple[str, str]] = []
        self.informer: Informer[Child] = Informer(
            Cluster(), SERVICES, child, selector=JOB_LABEL, namespaces=namespaces, changed=self._changed
        )

    def _changed(self, key: Key) -> None:
        self.told.append(key)
        self.states += [(name, one.resource_version) for name, one in self.informer.of_job(key).items()]

    def names(self, key: Key = A) -> set[str]:
        return set(self.informer.of_job(key))


@asynccontextmanager
async def watching(*namespaces: str) -> AsyncIterator[Watched]:
    """An informer that has its first lists."""
    watched = Watched(*namespaces)
    try:
        await asyncio.wait_for(watched.informer.synced(), 5)
        yield watched
    finally:
        watched.informer.stop()


async def until(what: Callable[[], Any], wanted: str, seconds: float = 10.0) -> None:
    """Wait for it."""
    for _ in range(int(seconds / 0.01)):
        if what():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"not within {seconds} s: {wanted}")


async def followed(api: Api, watched: Watched, name: str = "sign") -> None:
    """Wait until what happened so far has been seen."""
    api.put(SERVICES, thing(name))
    await until(lambda: name in watched.names(), f"{name} is seen")


async def watches(api: Api, number: int) -> None:
    """Wait for so many requests to watch."""
    await until(lambda: len(api.asked(watch=True)) >= number, f"{number} watches")


def test_a_list_is_read_page_by_page(api: Api) -> None:
    """What is there at the start, of each job by name; what bears no label is not asked for."""
    for number in range(5):
        api.put(SERVICES, thing(f"s{number}", "ab"[number % 2]))
    api.put(SERVICES, thing("other", ""))

    async def run() -> None:
        async with watching() as watched:
            assert watched.informer.is_synced
            assert len(watched.informer) == 5
            assert (watched.names(A), watched.names(B)) == ({"s0", "s2", "s4"}, {"s1", "s3"})
            assert set(watched.told) == {A, B}

    asyncio.run(run())
    assert [(query["limit"], query.get("continue")) for query in api.asked(watch=False)] == [
        ("2", None),
        ("2", "2"),
        ("2", "4"),
    ]
    assert all(query["labelSelector"] == "tablebay.dev/job" for query in api.asked(watch=False))


def test_what_happens_is_followed(api: Api) -> None:
    """Objects come, change and go, and their job is told each time."""

    async def run() -> None:
        async with watching() as watched:
            api.put(SERVICES, thing("s"))
            await until(lambda: watched.names() == {"s"}, "s is there")
            api.put(SERVICES, {**thing("s"), "spec": {"clusterIP": "None"}})
            await until(lambda: len(watched.told) == 2, "the change is told")
            api.remove(SERVICES, "s")
            await until(lambda: not watched.names(), "s is gone")
            assert watched.told == [A, A, A]
            assert len(watched.informer) == 0

    asyncio.run(run())


def test_a_watch_goes_on_from_the_last_bookmark(api: Api) -> None:
    """Bookmarks are asked for, and one saves the next watch what is of no concern to it."""

    async def run() -> str:
        async with watching():
            await watches(api, 1)
            version = api.bookmark(SERVICES)
            await asyncio.sleep(0.1)
            api.break_watches(properly=True)
            await watches(api, 2)
            return version

    version = asyncio.run(run())
    assert api.asked(watch=True)[1]["resourceVersion"] == version
    assert api.asked(watch=True)[0]["allowWatchBookmarks"] == "true"
    assert len(api.asked(watch=False)) == 1, "listed again for nothing"


@pytest.mark.parametrize("gone", ["status", "event"])
def test_a_forgotten_version_brings_a_new_list(api: Api, gone: str) -> None:
    """410 as the answer, or as an ERROR within the watch; what was deleted meanwhile is found, and its job told."""
    api.gone = gone
    api.put(SERVICES, thing("kept"))
    api.put(SERVICES, thing("doomed", "b"))

    async def run() -> None:
        async with watching() as watched:
            await watches(api, 1)
            api.silent = True
            api.remove(SERVICES, "doomed")
            api.put(SERVICES, thing("new"))
            api.forget()
            watched.told.clear()
            api.break_watches(properly=True)
            api.silent = False
            await until(lambda: watched.names() == {"kept", "new"}, "the new list")
            assert watched.names(B) == set()
            assert B in watched.told
            assert watched.told.count(A) == 1, "an object that had not changed was told of"
            await followed(api, watched)

    asyncio.run(run())
    assert len(api.asked(watch=False)) == 2


def test_a_broken_connection_is_made_anew(api: Api) -> None:
    """In the middle of a line even; nothing is missed, and nothing is listed again."""

    async def run() -> None:
        async with watching() as watched:
            for number in range(3):
                await watches(api, number + 1)
                api.put(SERVICES, thing(f"s{number}"))
                api.break_watches()
            await until(lambda: watched.names() == {"s0", "s1", "s2"}, "all three")
            await followed(api, watched)

    asyncio.run(run())
    assert len(api.asked(watch=False)) == 1


def test_a_silent_watch_is_given_up(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection stands, but nothing comes any more: after a while it is made anew."""
    monkeypatch.setattr(informers, "SILENCE_S", 0.3)

    async def run() -> None:
        async with watching() as watched:
            await watches(api, 1)
            api.silent = True
            api.put(SERVICES, thing("s"))
            await watches(api, 2)
            api.silent = False
            await until(lambda: watched.names() == {"s"}, "what was not told")
            assert watched.informer.silent_s < 5

    asyncio.run(run())


def test_refusals_are_tried_again_ever_more_slowly(api: Api) -> None:
    """An API server that is starting: a bounded number of requests, then the list."""
    api.put(SERVICES, thing("s"))
    api.fault = lambda method, path, query: refusal(503, "ServiceUnavailable", "starting")

    async def run() -> None:
        watched = Watched()
        await asyncio.sleep(0.5)
        assert not watched.informer.is_synced
        # 10 ms, doubled: after half a second the sixth waits.
        assert 3 <= len(api.requests) <= 8
        api.fault = lambda method, path, query: None
        await asyncio.wait_for(watched.informer.synced(), 5)
        assert watched.names() == {"s"}
        watched.informer.stop()

    asyncio.run(run())


def test_a_write_is_known_at_once_and_not_undone_by_an_older_event(api: Api) -> None:
    """The watch is behind: it tells of the state before the write after the write was remembered."""

    async def run() -> None:
        async with watching() as watched:
            api.put(SERVICES, thing("s"))
            await until(lambda: watched.names() == {"s"}, "s is there")
            api.silent = True
            older = api.put(SERVICES, {**thing("s"), "spec": {"number": 1}})
            newer = api.put(SERVICES, {**thing("s"), "spec": {"number": 2}})
            remembered = watched.informer.remember(newer)
            assert watched.informer.of_job(A)["s"] == remembered
            api.silent = False
            api.wake()
            await followed(api, watched)
            assert watched.informer.of_job(A)["s"].resource_version == newer["metadata"]["resourceVersion"]
            assert ("s", older["metadata"]["resourceVersion"]) not in watched.states

    asyncio.run(run())


def test_an_old_deletion_does_not_take_the_object_that_was_made_anew(api: Api) -> None:
    """Deleted and made again by us, while the watch is behind."""

    async def run() -> None:
        async with watching() as watched:
            api.put(SERVICES, thing("s"))
            await until(lambda: watched.names() == {"s"}, "s is there")
            api.silent = True
            api.remove(SERVICES, "s")
            again = api.put(SERVICES, thing("s"))
            watched.informer.remember(again)
            watched.states.clear()
            watched.told.clear()
            api.silent = False
            api.wake()
            await followed(api, watched)
            assert watched.informer.of_job(A)["s"].uid == again["metadata"]["uid"]

    asyncio.run(run())


def test_bug_an_answer_that_comes_after_its_object_was_deleted_brings_nothing_back(api: Api) -> None:
    """The watch tells of the write, and of the end, before the answer to the write is there.

    What it brought back would be gone only with the next list, so nearly never; till then its name was taken."""

    async def run() -> None:
        async with watching() as watched:
            written = copy.deepcopy(api.put(SERVICES, thing("s")))
            await until(lambda: watched.names() == {"s"}, "s is there")
            api.remove(SERVICES, "s")
            await until(lambda: not watched.names(), "s is gone")
            watched.informer.remember(written)
            assert watched.names() == set()
            again = api.put(SERVICES, thing("s"))
            watched.informer.remember(again)
            assert watched.informer.of_job(A)["s"].uid == again["metadata"]["uid"]

    asyncio.run(run())


@pytest.mark.parametrize("namespaces", [(), ("ads", "news")])
def test_bug_an_answer_that_comes_after_a_list_without_its_object_brings_nothing_back(
    api: Api, namespaces: tuple[str, ...]
) -> None:
    """It was made and deleted while nothing was watched; what another namespace's list says does not count."""

    async def run() -> None:
        async with watching(*namespaces) as watched:
            await watches(api, max(1, len(namespaces)))
            api.silent = True
            written = copy.deepcopy(api.put(SERVICES, thing("s")))
            api.remove(SERVICES, "s")
            api.put(SERVICES, thing("new"))
            api.forget()
            api.break_watches(properly=True)
            api.silent = False
            await until(lambda: watched.names() == {"new"}, "the new list")
            watched.informer.remember(written)
            assert watched.names() == {"new"}
            again = api.put(SERVICES, thing("s"))
            watched.informer.remember(again)
            assert watched.names() == {"new", "s"}

    asyncio.run(run())


def test_what_a_list_of_older_versions_has_is_there() -> None:
    """Versions begin anew in a cluster that was restored: an end that was told of before says nothing of now."""
    store: Store[Child] = Store(SERVICES, child, changed=lambda key: None)
    store.replace(None, [], 60)
    body = thing("s")
    body["metadata"].update(uid="1", resourceVersion="70")
    store.take("ADDED", store.projected(body))
    store.take(
        "DELETED", store.projected({**body, "metadata": {**body["metadata"], "resourceVersion": "80"}})
    )
    restored = store.projected({**body, "metadata": {**body["metadata"], "resourceVersion": "60"}})
    store.replace(None, [restored], 65)
    assert store.of_job(A) == {"s": restored}


def test_an_object_whose_label_is_taken_away_is_gone_for_its_job(api: Api) -> None:
    """A real API server says DELETED to a watch with a selector; a new list says the same."""
    api.put(SERVICES, thing("s"))

    async def run() -> None:
        async with watching() as watched:
            await watches(api, 1)
            api.silent = True
            api.put(SERVICES, thing("s", ""))
            api.forget()
            api.break_watches(properly=True)
            api.silent = False
            await until(lambda: not watched.names(), "s is gone")

    asyncio.run(run())


def test_namespaces_are_watched_each_for_itself(api: Api) -> None:
    """A new list of one takes nothing of the other; other namespaces are not asked for."""
    for namespace in ("ads", "news", "else"):
        api.put(SERVICES, thing("s", namespace=namespace))

    async def run() -> None:
        async with watching("ads", "news") as watched:
            await watches(api, 2)
            assert len(watched.informer) == 2
            api.put(SERVICES, thing("t", namespace="else"))
            api.forget()
            api.break_watches(properly=True)
            await until(lambda: len(api.asked(watch=False)) >= 4, "both listed again")
            await followed(api, watched)
            assert watched.names(("news", "a")) == {"s"}
            assert watched.names(("ads", "a")) == {"s", "sign"}

    asyncio.run(run())
    paths = {path for _, path, _ in api.requests}
    assert paths == {"/api/v1/namespaces/ads/services", "/api/v1/namespaces/news/services"}


def test_a_stopped_informer_ends_its_threads(api: Api) -> None:
    """At the next sign of life of its watch."""
    before = set(threading.enumerate())

    async def run() -> None:
        async with watching("ads", "news"):
            await watches(api, 2)
        api.put(SERVICES, thing("s"))
        api.break_watches(properly=True)
        mine = [one for one in threading.enumerate() if one not in before and one.name == "watch-services"]
        for thread in mine:
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()

    asyncio.run(run())


def test_bug_a_broken_watch_goes_on_from_the_last_event_seen(api: Api) -> None:
    """Not from where it began, up to five minutes ago: all since then would be sent and told again."""

    async def run() -> str:
        async with watching() as watched:
            await watches(api, 1)
            await followed(api, watched)
            version = str(api.version)
            api.break_watches()
            await watches(api, 2)
            return version

    version = asyncio.run(run())
    assert api.asked(watch=True)[1]["resourceVersion"] == version


def test_bug_a_version_that_is_always_gone_is_no_reason_to_ask_without_a_pause(api: Api) -> None:
    """An API server that forgets at once (a full watch cache): lists come at a bounded rate."""
    api.fault = lambda method, path, query: refusal(410, "Expired") if "watch" in query else None

    async def run() -> int:
        async with watching():
            await asyncio.sleep(0.5)
            return len(api.requests)

    number = asyncio.run(run())
    assert number < 40, f"{number} requests in half a second"


def test_bug_a_watch_that_ends_at_once_is_no_reason_to_ask_without_a_pause(api: Api) -> None:
    """A proxy that ends each watch as soon as it begins: watches come at a bounded rate."""
    api.fault = lambda method, path, query: (200, "") if "watch" in query else None

    async def run() -> int:
        async with watching():
            await asyncio.sleep(0.5)
            return len(api.requests)

    number = asyncio.run(run())
    assert number < 40, f"{number} requests in half a second"


@pytest.mark.parametrize("where", ["list", "watch"])
def test_bug_an_answer_that_is_no_json_does_not_end_the_watch_for_good(api: Api, where: str) -> None:
    """A proxy's page with status 200, once; afterwards the informer goes on by itself."""
    pages = [(200, "<html>maintenance</html>\n")]
    api.fault = lambda method, path, query: (
        pages.pop() if pages and ("watch" in query) == (where == "watch") else None
    )

    async def run() -> None:
        watched = Watched()
        await until(lambda: not pages, "the page was sent")
        api.put(SERVICES, thing("s"))
        await until(lambda: watched.names() == {"s"}, "the informer goes on", 2.0)
        watched.informer.stop()

    asyncio.run(run())
