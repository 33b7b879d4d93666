"""The certificates of a job's pods: who gets which, when they are renewed, and how an authority is replaced."""

from __future__ import annotations

import asyncio
import base64
import copy
import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from unit.operator_world import DEFAULTS, job_object, manifests_of
from unit.test_operator_cluster import merged
from unit.test_operator_manifests import OVERRIDES

from tablebay.client.certificates import Pair, issue
from tablebay.client.peer import Peer
from tablebay.operator import authority, pod_tls
from tablebay.operator.authority import LIFE, RENEW_ANNOTATION, ROTATE_ANNOTATION, Authority
from tablebay.operator.certificates import LOOK_EVERY_S, Certificates
from tablebay.operator.cluster import SECRETS, ApiError
from tablebay.operator.manifests import children
from tablebay.ps_server.access import shown

BEGAN = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
SPREAD_S = 300.0
AUTHORITY, SERVERS, WORKERS = "flights-authority", "flights-server-tls-0", "flights-worker-tls-0"


def bytes_of(secret: dict[str, Any]) -> dict[str, bytes]:
    return {name: base64.b64decode(value) for name, value in secret["data"].items()}


class Secrets:
    """The Secrets of a namespace, as the API server keeps them; a clock; and an operator that may be replaced."""

    def __init__(self) -> None:
        self.now = BEGAN
        self.there: dict[str, dict[str, Any]] = {}
        self.calls: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], ApiError | None] = lambda verb, name: None
        self.job = job_object()
        self.version = 0
        self.restart()

    def restart(self) -> None:
        """Another operator, which knows nothing."""
        self.certificates = Certificates(self, spread_s=SPREAD_S, now=lambda: self.now)  # type: ignore[arg-type]

    def _asked(self, verb: str, resource: Any, name: str) -> None:
        assert resource is SECRETS
        self.calls.append((verb, name))
        if (error := self.refuse(verb, name)) is not None:
            raise error

    async def get(self, resource: Any, namespace: str, name: str) -> dict[str, Any] | None:
        self._asked("get", resource, name)
        return copy.deepcopy(self.there.get(name))

    async def create(self, resource: Any, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        name = body["metadata"]["name"]
        self._asked("create", resource, name)
        if name in self.there:
            raise ApiError(409, "AlreadyExists", name)
        return self._put(name, body)

    async def patch(self, resource: Any, namespace: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self._asked("patch", resource, name)
        if body["metadata"]["resourceVersion"] != self.there[name]["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", name)
        return self._put(name, merged(self.there[name], body))

    def _put(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        body = copy.deepcopy(body)
        body["metadata"]["resourceVersion"] = str(self.version)
        self.there[name] = body
        return copy.deepcopy(body)

    # -- what a test does --

    def look(self) -> list[str]:
        """One look of the operator; the names that something else has."""
        return asyncio.run(self.certificates.keep(self.job))

    def later(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)

    def until_due(self) -> None:
        """Look when it asks for it."""
        self.later(self.certificates.due_s(("ads", "flights")) or 0)
        assert self.look() == []

    def wish(self, name: str, text: str) -> None:
        """The user annotates the job."""
        self.job = replace(self.job, annotations={**self.job.annotations, name: text})

    # -- what there is --

    def pair(self, secret: str, index: int) -> Pair:
        key, certificate = pod_tls.pair_files(index)
        found = bytes_of(self.there[secret])
        return Pair(found[key], found[certificate])

    def trusted(self, secret: str) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates(bytes_of(self.there[secret])["ca.crt"])

    def pairs(self) -> dict[tuple[str, int], Pair]:
        return {(name, index): self.pair(name, index) for name in (SERVERS, WORKERS) for index in (0, 1)}

    def writes(self) -> int:
        return sum(1 for verb, _ in self.calls if verb != "get")


@pytest.fixture
def secrets() -> Secrets:
    """Of the flights job, looked at once."""
    found = Secrets()
    assert found.look() == []
    return found


def issued(pair: Pair, by: x509.Certificate) -> bool:
    try:
        x509.load_pem_x509_certificate(pair.certificate).verify_directly_issued_by(by)
    except Exception:  # noqa: BLE001 - of a signature, or of a name
        return False
    return True


def test_each_process_has_a_pair_that_names_its_job_role_and_index(secrets: Secrets) -> None:
    """By the job's uid, so that one made anew under the same name is another; a server's has its names as well."""
    assert set(secrets.there) == {AUTHORITY, SERVERS, WORKERS}
    for name, role in ((SERVERS, "server"), (WORKERS, "worker")):
        assert set(bytes_of(secrets.there[name])) == {"ca.crt", "0.key", "0.crt", "1.key", "1.crt"}
        for index in (0, 1):
            pair = secrets.pair(name, index)
            assert shown(pair.certificate).peer == Peer("ads", "u-1", role, index)  # type: ignore[arg-type]
            assert issued(pair, secrets.trusted(name)[0])
    names = x509.load_pem_x509_certificate(secrets.pair(SERVERS, 1).certificate)
    found = names.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == [
        "flights-server-1.flights-servers",
        "flights-server-1.flights-servers.ads",
        "flights-server-1.flights-servers.ads.svc",
    ]
    for secret in secrets.there.values():
        (owner,) = secret["metadata"]["ownerReferences"]
        assert owner["uid"] == "u-1", "Kubernetes deletes it with the job"
    key = bytes_of(secrets.there[AUTHORITY])["signer.key"]
    assert not any(key in bytes_of(secrets.there[name]).values() for name in (SERVERS, WORKERS))


def test_at_rest_nothing_is_written_and_little_is_read(secrets: Secrets) -> None:
    """A job is looked at all the time; its Secrets now and then, since no right lets the operator watch them."""
    before = len(secrets.calls)
    for _ in range(20):
        secrets.later(10)
        assert secrets.look() == []
    assert len(secrets.calls) == before
    secrets.later(2 * LOOK_EVERY_S)
    secrets.look()
    assert secrets.calls[before:] == [("get", AUTHORITY), ("get", SERVERS), ("get", WORKERS)]
    secrets.restart()
    secrets.look()
    assert secrets.writes() == 3, "an operator that begins finds all as it should be"


def test_certificates_are_made_anew_in_the_middle_of_their_life(secrets: Secrets) -> None:
    """By the same authority; not before, and an operator that was away for half of it is in time."""
    before, trusted = secrets.pairs(), secrets.trusted(WORKERS)
    secrets.now = BEGAN + LIFE / 2 - datetime.timedelta(hours=1)
    secrets.look()
    assert secrets.pairs() == before
    secrets.until_due()
    while secrets.now < BEGAN + LIFE / 2:
        secrets.until_due()
    after = secrets.pairs()
    assert not set(after.values()) & set(before.values())
    assert secrets.trusted(WORKERS) == secrets.trusted(SERVERS) == trusted
    assert all(
        shown(pair.certificate).ends >= secrets.now + LIFE - datetime.timedelta(hours=1)
        for pair in after.values()
    )
    for pair in before.values():
        assert shown(pair.certificate).ends > secrets.now + LIFE / 3


def test_a_year_with_an_operator_goes_by(secrets: Secrets) -> None:
    """At each of its looks every pair is valid, for a day at least, and of an authority that all pods trust.

    The authority changed on the way, since its own life is a year."""
    first = secrets.trusted(WORKERS)
    while secrets.now < BEGAN + datetime.timedelta(days=366):
        secrets.later(7 * 24 * 3600 - SPREAD_S)
        for _ in range(5):
            secrets.later(SPREAD_S)
            assert secrets.look() == []
            for (name, _), pair in secrets.pairs().items():
                found = shown(pair.certificate)
                assert found.ends > secrets.now + datetime.timedelta(days=1), name
                for other in (SERVERS, WORKERS):
                    assert any(issued(pair, one) for one in secrets.trusted(other))
                    assert all(one.not_valid_after_utc > secrets.now for one in secrets.trusted(other))
    assert secrets.trusted(WORKERS) != first


def test_an_authority_is_replaced_with_an_overlap(secrets: Secrets) -> None:
    """Trusted first, then it signs, then the old one goes, each when every pod has had time to see the step before.

    So whichever step each of two pods has seen, or the one before it, they trust each other."""
    seen = [(secrets.pairs(), {name: secrets.trusted(name) for name in (SERVERS, WORKERS)})]
    began = secrets.now
    secrets.wish(ROTATE_ANNOTATION, "now")
    secrets.look()
    seen.append((secrets.pairs(), {name: secrets.trusted(name) for name in (SERVERS, WORKERS)}))
    for _ in range(2):
        secrets.later(SPREAD_S - 1)
        secrets.look()
        assert secrets.pairs() == seen[-1][0], "too early"
        secrets.until_due()
        seen.append((secrets.pairs(), {name: secrets.trusted(name) for name in (SERVERS, WORKERS)}))
    assert 2 * SPREAD_S <= (secrets.now - began).total_seconds() < 3 * SPREAD_S
    assert [len(trusted[WORKERS]) for _, trusted in seen] == [1, 2, 2, 1]
    assert seen[0][0] == seen[1][0]
    assert not set(seen[1][0].values()) & set(seen[2][0].values())
    assert seen[2][0] == seen[3][0]
    assert seen[3][1][WORKERS][0] not in seen[0][1][WORKERS]
    for step, (pairs, trusted) in enumerate(seen):
        for other in seen[max(0, step - 1) : step + 2]:
            for name in (SERVERS, WORKERS):
                for pair in (*pairs.values(), *other[0].values()):
                    assert any(issued(pair, one) for one in other[1][name])
                    assert any(issued(pair, one) for one in trusted[name])
    assert not any(issued(pair, seen[3][1][WORKERS][0]) for pair in seen[0][0].values())
    secrets.later(10 * LOOK_EVERY_S)
    before = secrets.writes()
    secrets.look()
    assert secrets.writes() == before, "each wish is obeyed once"


@pytest.mark.parametrize("number", range(8))
def test_an_operator_that_dies_in_a_rotation_is_followed_by_one_that_ends_it(number: int) -> None:
    """After any write: the answer is lost and the operator is gone. The next one goes on; no step is skipped."""
    secrets = Secrets()
    secrets.look()
    secrets.later(SPREAD_S + 1)
    first = secrets.trusted(WORKERS)
    secrets.wish(ROTATE_ANNOTATION, "now")
    writes = 0

    class Died(Exception):
        """With the answer of a write."""

    put = secrets._put

    def dies(name: str, body: dict[str, Any]) -> dict[str, Any]:
        nonlocal writes
        writes += 1
        made = put(name, body)
        if writes == number + 1:
            raise Died
        return made

    secrets._put = dies  # type: ignore[method-assign]
    died = False
    before = {name: secrets.trusted(name) for name in (SERVERS, WORKERS)}
    for _ in range(12):
        try:
            secrets.look()
        except Died:
            died = True
            secrets.restart()
            continue
        for name in (SERVERS, WORKERS):
            # What pods have seen until now still trusts every pair of now.
            assert all(any(issued(pair, one) for one in before[name]) for pair in secrets.pairs().values())
        before = {name: secrets.trusted(name) for name in (SERVERS, WORKERS)}
        secrets.later(SPREAD_S + 1)
    assert died
    assert len(secrets.trusted(WORKERS)) == len(secrets.trusted(SERVERS)) == 1
    assert secrets.trusted(WORKERS) == secrets.trusted(SERVERS) != first
    assert all(issued(pair, secrets.trusted(SERVERS)[0]) for pair in secrets.pairs().values())


def test_new_certificates_are_made_when_they_are_asked_for(secrets: Secrets) -> None:
    """At once and once for each text; the authority stays."""
    before, trusted = secrets.pairs(), secrets.trusted(SERVERS)
    secrets.wish(RENEW_ANNOTATION, "2026-01-02")
    secrets.look()
    after = secrets.pairs()
    assert not set(after.values()) & set(before.values())
    assert secrets.trusted(SERVERS) == trusted
    secrets.restart()
    secrets.look()
    assert secrets.pairs() == after


@pytest.mark.parametrize("name", [SERVERS, WORKERS])
def test_a_secret_that_a_hand_has_deleted_or_changed_is_mended(secrets: Secrets, name: str) -> None:
    """Pairs of another process, of another authority, that have ended, or no pairs at all."""
    good = copy.deepcopy(secrets.there[name])
    other = authority.new_authority(secrets.job, secrets.now)
    role = "server" if name == SERVERS else "worker"
    peer = Peer("ads", "u-1", role, 0)  # type: ignore[arg-type]
    names = pod_tls.server_host_names(secrets.job, 0) if role == "server" else ()
    signer = authority.read_authority(secrets.there[AUTHORITY])
    assert signer is not None

    def with_pair(pair: Pair) -> dict[str, Any]:
        body = copy.deepcopy(good)
        body["data"]["0.key"], body["data"]["0.crt"] = (
            base64.b64encode(text).decode() for text in (pair.key, pair.certificate)
        )
        return body

    second = datetime.timedelta(seconds=1)
    damaged: list[dict[str, Any] | None] = [
        None,
        {**good, "data": {}},
        {**good, "data": None},
        {**good, "data": {"0.key": "!"}},
        {**good, "data": {**good["data"], "ca.crt": ""}},
        {**good, "data": {**good["data"], "more": "AA=="}},
        {**good, "data": {**good["data"], "0.crt": good["data"]["1.crt"]}},
        with_pair(issue(other.signer, peer, names, secrets.now, LIFE)),
        with_pair(issue(signer.signer, peer, names, secrets.now, second)),
        with_pair(issue(signer.signer, replace(peer, index=1), names, secrets.now, LIFE)),
        with_pair(issue(signer.signer, replace(peer, job="u-2"), names, secrets.now, LIFE)),
        with_pair(issue(signer.signer, peer, ("other.example",), secrets.now, LIFE)),
    ]
    for body in damaged:
        if body is None:
            del secrets.there[name]
        else:
            secrets.there[name] = copy.deepcopy(body)
            secrets.there[name]["metadata"]["resourceVersion"] = str(secrets.version)
        secrets.later(2 * LOOK_EVERY_S)
        assert secrets.look() == []
        found = secrets.pair(name, 0)
        assert shown(found.certificate).peer == peer
        assert shown(found.certificate).ends > secrets.now + LIFE / 3
        assert issued(found, secrets.trusted(name)[0])
        assert set(secrets.there[name]["data"]) == set(good["data"])


@pytest.mark.parametrize("damage", [None, {}, {"signer.key": "AA==", "signer.crt": "AA=="}])
def test_an_authority_that_is_gone_or_damaged_is_made_anew(
    secrets: Secrets, damage: dict[str, str] | None
) -> None:
    """And every pair with it: nobody can sign for the old one any more."""
    if damage is None:
        del secrets.there[AUTHORITY]
    else:
        secrets.there[AUTHORITY]["data"] = damage
    secrets.later(2 * LOOK_EVERY_S)
    assert secrets.look() == []
    assert all(issued(pair, secrets.trusted(WORKERS)[0]) for pair in secrets.pairs().values())
    assert secrets.trusted(WORKERS) == secrets.trusted(SERVERS)


def test_an_authority_that_has_ended_is_replaced_at_once() -> None:
    """Of a job whose operator was away for more than a year: there is nobody left to be careful of."""
    secrets = Secrets()
    secrets.look()
    secrets.now += authority.AUTHORITY_LIFE + datetime.timedelta(days=1)
    assert secrets.look() == []
    assert all(shown(pair.certificate).ends > secrets.now for pair in secrets.pairs().values())
    assert len(secrets.trusted(WORKERS)) == 1


def test_a_secret_of_something_else_is_left_alone() -> None:
    """It may be another job's that is about to go; the name is told, and nothing is written over."""
    for name in (AUTHORITY, SERVERS, WORKERS):
        secrets = Secrets()
        body = {"metadata": {"name": name, "resourceVersion": "1"}, "data": {"mine": "AA=="}}
        secrets.there[name] = copy.deepcopy(body)
        assert secrets.look() == [f"Secret {name}"]
        assert asyncio.run(secrets.certificates.taken(secrets.job)) == [f"Secret {name}"]
        assert secrets.there[name] == body


def test_nothing_but_get_create_and_patch_is_asked(secrets: Secrets) -> None:
    """S3: whoever holds the operator's token lists no Secret, watches none and deletes none."""
    secrets.wish(ROTATE_ANNOTATION, "now")
    for _ in range(5):
        secrets.later(SPREAD_S + 1)
        secrets.look()
    assert {verb for verb, _ in secrets.calls} == {"get", "create", "patch"}
    assert {name for _, name in secrets.calls} == {AUTHORITY, SERVERS, WORKERS}


def test_the_operator_shows_a_certificate_of_its_own_role(secrets: Secrets) -> None:
    """Made in memory by the job's authority, and made anew in its time; none is in a Secret."""
    secrets.restart()
    source = asyncio.run(secrets.certificates.source(secrets.job))
    assert source is not None
    found = source.read()
    assert shown(found.certificate).peer == Peer("ads", "u-1", "operator")
    assert issued(Pair(found.key, found.certificate), secrets.trusted(SERVERS)[0])
    assert not any(found.key in bytes_of(one).values() for one in secrets.there.values())
    secrets.later(3 * 3600)
    later = asyncio.run(secrets.certificates.source(secrets.job))
    assert later is not None and shown(later.read().certificate).ends > secrets.now
    assert asyncio.run(Secrets().certificates.source(secrets.job)) is None


def test_a_job_of_thousands_has_secrets_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each below the 1 MiB that Kubernetes takes; together every rank once."""
    job = job_object({"workers": {**job_object().spec["workers"], "replicas": 1200}})
    blocks = [one for one in authority.blocks(job) if one.role == "worker"]
    assert [index for one in blocks for index in one.indices] == list(range(1200))
    made = authority.advance(job, authority.new_authority(job, BEGAN), "now", BEGAN, settled=False)
    standing = authority.standing(job, blocks[0], made, None, "", BEGAN)
    assert standing.content is not None
    assert sum(map(len, bytes_of(standing.content).values())) < 0.9 * 2**20
    assert len(json.dumps(standing.content)) < 1.5 * 2**20
    (workers,) = (one for one in manifests_of(job) if one["kind"] == "Job")
    (volume,) = (
        one for one in workers["spec"]["template"]["spec"]["volumes"] if one["name"] == pod_tls.PAIRS_VOLUME
    )
    assert [one["secret"]["name"] for one in volume["projected"]["sources"]] == [one.name for one in blocks]


@pytest.mark.parametrize("kind", ["StatefulSet", "Job"])
def test_no_container_but_one_of_ours_sees_the_pairs_of_others(kind: str) -> None:
    """Whatever the job's template says: the Secrets are mounted by that container alone, which runs as a user of its
    own, and the job's containers see one folder, to read."""
    for change in ({}, OVERRIDES):
        job = job_object(change)
        (found,) = (one for one in manifests_of(job) if one["kind"] == kind)
        pod = found["spec"]["template"]["spec"]
        first, *others = [*pod["initContainers"], *pod["containers"]]
        assert first["name"] == pod_tls.CONTAINER
        assert first["restartPolicy"] == "Always"
        assert first["securityContext"]["runAsUser"] != 65532
        assert first["image"] == DEFAULTS.server_image
        of_all = [one["name"] for one in pod["volumes"] if "projected" in one or "secret" in one]
        assert of_all == [pod_tls.PAIRS_VOLUME]
        role = "server" if kind == "StatefulSet" else "worker"
        for container in others:
            mounts = {one["name"]: one for one in container.get("volumeMounts", ())}
            assert pod_tls.PAIRS_VOLUME not in mounts
            values = {one["name"]: one.get("value") for one in container.get("env", ())}
            if container["name"] == role:
                assert mounts[pod_tls.OWN_VOLUME]["readOnly"] is True
                assert values["TABLEBAY_TLS_DIR"] == pod_tls.TLS_DIR
        (own,) = (one for one in pod["volumes"] if one["name"] == pod_tls.OWN_VOLUME)
        assert own["emptyDir"]["medium"] == "Memory", "keys come to no disk"


def test_a_template_may_say_more_of_the_container() -> None:
    """Its resources and image, for nodes where they matter; not what it runs, nor what it mounts."""
    given = {
        "name": pod_tls.CONTAINER,
        "image": "registry/own:2",
        "resources": {"limits": {"cpu": "50m", "memory": "64Mi"}},
        "command": ["true"],
    }
    worker = {"name": "worker", "command": ["true"]}
    template = {"spec": {"containers": [worker], "initContainers": [{"name": "fetch"}, given]}}
    job = job_object({"workers": {"replicas": 2, "template": template}})
    (found,) = (one for one in manifests_of(job) if one["kind"] == "Job")
    first, second = found["spec"]["template"]["spec"]["initContainers"]
    assert (first["name"], second["name"]) == (pod_tls.CONTAINER, "fetch")
    assert (first["image"], first["resources"]) == (given["image"], given["resources"])
    assert first["command"] == ["tablebay-own-certificate"]


def test_a_job_without_tls_has_nothing_of_it() -> None:
    """No volume, no container, no variable, no note on its objects."""
    for manifest in children(job_object(), DEFAULTS, tls=False):
        text = json.dumps(manifest)
        assert "tls" not in text.lower() and "certificate" not in text


def test_authorities_read_back(secrets: Secrets) -> None:
    """In each step of a rotation, from the Secret alone."""
    found: Authority = authority.new_authority(secrets.job, BEGAN, "a")
    for _ in range(3):
        assert authority.read_authority(authority.authority_secret(secrets.job, found)) == found
        found = authority.advance(secrets.job, found, "b", BEGAN, settled=True)
    assert found.rotated == "b" and not found.old and found.next is None
