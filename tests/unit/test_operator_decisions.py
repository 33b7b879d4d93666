"""More of the operator's decisions: any world at all, fixed points, and corners. test_operator_decide.py has a life."""

from __future__ import annotations

import copy
import datetime
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.operator_world import BEGAN, DEFAULTS, World, job_object, text

from tablebay.operator import projections
from tablebay.operator.decisions import LAST_REPORT_S, decide
from tablebay.operator.obstacles import invalid
from tablebay.operator.plans import Observed, Plan, Progress
from tablebay.operator.projections import SERVERS_ANNOTATION, Child

OOM = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": "2026-01-02T03:05:00Z"}}
SEGV = {"terminated": {"exitCode": 139, "reason": "Error", "finishedAt": "2026-01-02T03:05:00Z"}}
EXIT_3 = {
    "terminated": {
        "exitCode": 3,
        "reason": "Error",
        "message": "out of ideas",
        "finishedAt": "2026-01-02T03:05:00Z",
    }
}


def decided(world: World, **change: Any) -> Plan:
    """What would be done, without doing it."""
    observed = replace(world.observed(), **change)
    return decide(world.job, observed, world.status, DEFAULTS, world.now)


def settled(world: World) -> bool:
    """Whether another look does nothing: no write, and the same status."""
    plan = decided(world)
    nothing = not (plan.applies or plan.patches or plan.deletes or plan.delete_job or plan.confirm)
    return nothing and plan.status == world.status and not plan.events


def finished(world: World) -> None:
    """The workers have ended well, and their last report is read."""
    world.train()
    world.complete()
    world.progress = Progress(values={"step": 9}, last=True)
    for _ in range(3):
        world.look()


# ---- stages, and that each is a fixed point


def test_every_stage_is_a_fixed_point() -> None:
    """The plan's effect fed back gives an empty plan: from the first apply to the end."""
    world = World()
    world.look()
    assert settled(world), "after the first apply"
    world.server(0)
    world.server(1, ready=False)
    world.look()
    assert settled(world), "one server is ready"
    world.servers()
    world.look()
    world.look()
    assert settled(world), "the workers are released"
    assert world.reason == "StartingWorkers"
    for rank in range(2):
        world.worker(rank)
    world.counts(ready=2)
    world.look()
    assert settled(world), "they train"
    world.complete()
    world.look()
    assert settled(world), "the last report is waited for"
    world.progress = Progress(last=True)
    world.look()
    world.look()
    world.look()
    assert settled(world), "complete"
    assert world.reason == "Completed"


@pytest.mark.parametrize("policy", ["All", "Running", "None"])
def test_the_end_for_a_lost_server_is_a_fixed_point(policy: str) -> None:
    """Under each clean policy, after a few looks."""
    world = World(job_object({"runPolicy": {"cleanPolicy": {"onFailure": policy}}}))
    world.train()
    del world.pods["flights-server-1"]
    for _ in range(4):
        world.look()
    assert settled(world)
    assert world.reason == "ServerLost"


@pytest.mark.parametrize("policy", ["All", "Running", "None"])
def test_workers_of_a_complete_job_are_cleaned_as_told(policy: str) -> None:
    """Of workers that have all ended well, All alone takes something, once the end is in the status."""
    world = World(job_object({"runPolicy": {"cleanPolicy": {"onSuccess": policy}}}))
    finished(world)
    assert (("Job", "flights-worker") in world.objects) is (policy != "All")
    assert settled(world)
    assert world.condition("Complete")["status"] == "True"
    assert world.status["workers"]["succeeded"] == 2


def test_the_times_of_a_job_are_those_of_its_workers() -> None:
    """startTime when they were released, completionTime when the last had ended, whenever the operator saw it."""
    world = World()
    world.train()
    world.later(100)
    world.complete()
    ended = text(world.now)
    world.later(7)
    world.progress = Progress(last=True)
    world.look()
    assert world.status["startTime"] == text(BEGAN)
    assert world.status["completionTime"] == ended
    assert world.condition("Complete")["lastTransitionTime"] == ended


# ---- servers


def test_no_server_is_lost_before_training_began() -> None:
    """Without the annotation on the workers' Job, whatever happens to servers is only a slow start."""
    world = World()
    world.look()
    for state in (OOM, SEGV, EXIT_3):
        world.server(0)
        world.server(1, ready=False, state=state)
        world.look()
        world.server(1, container="again", ready=False, state={"running": {}}, lastState=state)
        world.look()
        del world.pods["flights-server-1"]
        world.look()
        assert not world.condition("Failed")
        assert world.reason == "StartingServers"
        assert "1 of 2 servers are ready" in world.condition("Ready")["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"container": "again", "lastState": OOM}, "its process was killed for its memory (OOMKilled)"),
        ({"container": "again", "lastState": SEGV}, "its process was ended by signal 11"),
        ({"container": "again", "lastState": EXIT_3}, "its process ended with exit code 3"),
        ({"container": "again"}, "its pod was replaced"),
        ({"ready": False, "state": OOM}, "its process was killed for its memory (OOMKilled)"),
    ],
)
def test_the_message_says_what_became_of_the_server(change: dict[str, Any], words: str) -> None:
    """And what that means for the job."""
    world = World()
    world.train()
    world.server(1, **change)
    assert decided(world).confirm
    plan = world.look()
    message = world.condition("Failed")["message"]
    assert message.startswith(f"server 1 was lost in the middle of training: {words}; ")
    assert "without checkpoints" in message
    assert [(one.kind, one.reason) for one in plan.events] == [("Warning", "ServerLost")]
    assert world.status["firstFailure"]["pod"] == "flights-server-1"


def test_all_servers_lost_are_counted() -> None:
    """The first is named."""
    world = World()
    world.train()
    world.pods.clear()
    world.look()
    assert "server 0 was lost in the middle of training (and 1 more)" in world.condition("Failed")["message"]


def test_a_cache_that_was_behind_fails_nothing() -> None:
    """A server seems gone, but fresh reads show it: nothing is written."""
    world = World()
    world.train()
    seen = world.observed()
    behind = replace(seen, pods=[one for one in seen.pods if one.index != 1 or one.role != "server"])
    assert decide(world.job, behind, world.status, DEFAULTS, world.now).confirm
    plan = decided(world, fresh=True)
    assert not plan.confirm
    assert plan.status == world.status


def test_a_server_that_is_told_to_end_is_not_lost_before_it_has() -> None:
    """It may still answer for its 30 seconds of grace, but no workers are released beside it."""
    world = World()
    world.look()
    world.servers()
    world.pods["flights-server-1"]["metadata"]["deletionTimestamp"] = text(world.now)
    assert not decided(world).patches
    world = World()
    world.train()
    world.pods["flights-server-1"]["metadata"]["deletionTimestamp"] = text(world.now)
    world.look()
    assert not world.condition("Failed")


def test_an_annotation_that_was_edited_loses_no_server() -> None:
    """What cannot be read says nothing."""
    for note in ("", "[", "{}", "null", "3", '"c-0"'):
        world = World()
        world.train()
        world.workers["metadata"]["annotations"][SERVERS_ANNOTATION] = note
        assert not decided(world).confirm, note


# ---- what stands in the way


def test_a_refused_template_is_said_in_the_api_servers_words() -> None:
    """Ready is False for InvalidTemplate; it is tried again now and then, and said once."""
    world = World()
    words = 'Job.batch "flights-worker" is invalid: spec.template.spec.containers[0].image: Required value'
    plan = decided(world, refusal=words)
    assert not (plan.applies or plan.patches or plan.deletes)
    (ready,) = plan.status["conditions"]
    assert (ready["status"], ready["reason"], ready["message"]) == ("False", "InvalidTemplate", words)
    assert [(one.kind, one.reason) for one in plan.events] == [("Warning", "InvalidTemplate")]
    assert plan.again_s == 60
    world.status = dict(plan.status)
    world.later(60)
    again = decided(world, refusal=words)
    assert not again.events
    assert again.status == plan.status


def test_taken_names_are_said_and_asked_for_again() -> None:
    """What the executor found before the first apply."""
    plan = decided(World(), conflicts=["Service flights-servers"])
    (ready,) = plan.status["conditions"]
    assert ready["reason"] == "NameConflict"
    assert "Service flights-servers" in ready["message"]
    assert not plan.applies
    assert plan.again_s


@pytest.mark.parametrize(
    ("problems", "reason"),
    [
        (["spec.workers.template.spec.containers[0].image: found ''"], "InvalidTemplate"),
        (["spec.workers.template.spec: x", "spec.servers.replicas: found 0"], "InvalidSpec"),
    ],
)
def test_a_job_that_the_model_refuses_is_only_said_to_be_so(problems: list[str], reason: str) -> None:
    """Its objects are left as they are; an Event, once."""
    plan = invalid(problems, {}, generation=3, now=BEGAN)
    (ready,) = plan.status["conditions"]
    assert (ready["reason"], ready["message"]) == (reason, "; ".join(problems))
    assert plan.status["observedGeneration"] == 3
    assert len(plan.events) == 1
    assert not (plan.applies or plan.patches or plan.deletes)
    assert not invalid(problems, plan.status, generation=3, now=BEGAN).events


def test_a_job_of_its_name_that_was_deleted_is_waited_for() -> None:
    """Children of the job before have its uid: none is touched, and they are not taken for ours."""
    world = World()
    world.train()
    world.job = replace(world.job, uid="u-2", created=text(world.now))
    world.status = {}
    plan = world.look()
    assert world.reason == "NameConflict"
    assert not (plan.applies or plan.patches or plan.deletes)


def test_a_job_expires_only_on_fresh_reads() -> None:
    """Nothing is deleted on the word of a cache."""
    world = World(job_object({"runPolicy": {"ttlSecondsAfterFinished": 10}}))
    finished(world)
    world.later(11)
    plan = decided(world)
    assert plan.confirm
    assert not plan.delete_job
    assert decided(world, fresh=True).delete_job


def test_servers_are_deleted_only_on_fresh_reads() -> None:
    """At the end of the job, when that is in the status."""
    world = World()
    world.train()
    world.complete()
    world.progress = Progress(last=True)
    world.look()
    assert world.condition("Complete")
    plan = decided(world)
    assert plan.confirm
    assert not plan.deletes
    assert {kind for kind, *_ in decided(world, fresh=True).deletes} == {
        "StatefulSet",
        "Service",
        "PodDisruptionBudget",
    }


# ---- any world

# The uid of what makes the pods of a role, in a World.
OWNING = {"server": "u-StatefulSet-flights-server", "worker": "u-Job-flights-worker"}


def pods(role: str) -> st.SearchStrategy[dict[str, Any]]:
    """A pod of a role in any state, as the API server has it."""
    ended = st.sampled_from([OOM, SEGV, EXIT_3, {"terminated": {"exitCode": 0}}])
    waiting = st.sampled_from([{"waiting": {"reason": "CrashLoopBackOff"}}, {"waiting": {}}])
    state = st.one_of(st.just({"running": {}}), st.just({}), ended, waiting)
    status = st.fixed_dictionaries(
        {"name": st.sampled_from([role, role, "side"]), "state": state},
        optional={
            "containerID": st.sampled_from(["c-0", "c-1", "c-2", ""]),
            "lastState": ended,
            "restartCount": st.integers(0, 3),
        },
    )

    def body(
        index: str | None, suffix: str, ready: str, deleting: bool, owner: str, statuses: Any
    ) -> dict[str, Any]:
        name = f"flights-{role}-{index}{suffix}"
        labels = {"tablebay.dev/job": "flights", "tablebay.dev/role": role}
        if index is not None:
            labels["apps.kubernetes.io/pod-index"] = index
        meta = {
            "name": name,
            "namespace": "ads",
            "uid": f"u-{name}",
            "resourceVersion": "5",
            "labels": labels,
        }
        meta["ownerReferences"] = [{"uid": owner, "controller": True}]
        if deleting:
            meta["deletionTimestamp"] = text(BEGAN)
        conditions = [{"type": "Ready", "status": ready}, {"type": "PodScheduled", "status": "False"}]
        return {
            "metadata": meta,
            "spec": {},
            "status": {"conditions": conditions, "containerStatuses": statuses},
        }

    return st.builds(
        body,
        st.sampled_from(["0", "0", "1", "1", "2", "x", None]),
        st.sampled_from(["", "-a", "-b"]),
        st.sampled_from(["True", "True", "False", "Unknown"]),
        st.booleans(),
        st.sampled_from([OWNING[role]] * 5 + ["another"]),
        st.lists(status, max_size=2),
    )


OWNERS = st.sampled_from(["u-1"] * 8 + ["another", ""])


@st.composite
def jobs_of_workers(draw: st.DrawFn) -> dict[str, Any]:
    """A workers' Job in any state."""
    found = copy.deepcopy(World().job)
    world = World(found)
    world.look()
    body = world.workers
    body["spec"]["suspend"] = draw(st.booleans())
    note = draw(st.sampled_from([None, '["c-0", "c-1"]', '["c-0", "c-2"]', "[]", "[1, null]", "{", "{}"]))
    if note is not None:
        body["metadata"]["annotations"][SERVERS_ANNOTATION] = note
    failed = draw(
        st.sampled_from(
            [None] * 4
            + [
                "{",
                "{}",
                "7",
                json.dumps({"reason": "ServerLost", "message": "m", "time": text(BEGAN)}),
                json.dumps({"reason": "ServerLost", "message": "m", "time": ""}),
                json.dumps({"reason": "ServerLost", "message": "m", "time": "yesterday"}),
            ]
        )
    )
    if failed is not None:
        body["metadata"]["annotations"]["tablebay.dev/failed"] = failed
    condition = st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["Complete", "Failed", "FailureTarget", "Suspended", "SuccessCriteriaMet"]
            ),
            "status": st.sampled_from(["True", "False"]),
            "reason": st.sampled_from(["", "BackoffLimitExceeded", "DeadlineExceeded"]),
        },
        optional={"lastTransitionTime": st.sampled_from([text(BEGAN), "2026-01-02T03:04:05.123456Z", None])},
    )
    body["status"] = {
        name: draw(st.integers(0, 3)) for name in ("active", "ready", "succeeded", "failed")
    } | {"conditions": draw(st.lists(condition, max_size=3))}
    if draw(st.booleans()):
        body["metadata"]["deletionTimestamp"] = text(BEGAN)
    return body


@st.composite
def worlds(draw: st.DrawFn) -> tuple[World, Observed]:
    """A job and any children at all."""
    policy = {
        "ttlSecondsAfterFinished": draw(st.sampled_from([None, 0, 100])),
        "cleanPolicy": {
            "onSuccess": draw(st.sampled_from(["All", "Running", "None"])),
            "onFailure": draw(st.sampled_from(["All", "Running", "None"])),
        },
    }
    world = World(
        job_object(
            {
                "runPolicy": {name: value for name, value in policy.items() if value is not None},
                "servers": {"replicas": 2, "onFinish": draw(st.sampled_from(["Delete", "Retain"]))},
            }
        )
    )
    world.look()
    bodies = dict(world.objects)
    bodies["Job", "flights-worker"] = draw(jobs_of_workers())
    children: dict[tuple[str, str], Child] = {}
    project = {"StatefulSet": projections.stateful_set, "Job": projections.worker_job}
    for (kind, name), body in bodies.items():
        if draw(st.integers(0, 9)) < 8:
            child = project.get(kind, projections.child)(body)
            owner = draw(OWNERS)
            children[kind, name] = replace(
                child, owner=owner, generation=draw(st.integers(1, 2)), edited=draw(st.booleans())
            )
    seen = Observed(
        children=children,
        pods=[projections.pod(one) for one in draw(st.lists(pods("server"), max_size=4))]
        + [projections.pod(one) for one in draw(st.lists(pods("worker"), max_size=3))],
        progress=draw(
            st.builds(Progress, values=st.sampled_from([{}, {"step": 3}]), last=st.booleans()),
        ),
        settled=draw(st.sampled_from([{}, {child.uid: child.generation for child in children.values()}])),
        pod_monitors=draw(st.booleans()),
        refusal=draw(st.sampled_from([""] * 8 + ["no"])),
        fresh=draw(st.booleans()),
    )
    return world, seen


CONDITIONS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["Ready", "Complete", "Failed", "ServersReady", "Mine"]),
            "status": st.sampled_from(["True", "False", "Unknown"]),
            "reason": st.sampled_from(["Training", "ServerLost", "Completed", "Finishing"]),
            "message": st.sampled_from(["", "m"]),
        },
        optional={
            "lastTransitionTime": st.sampled_from(
                ["2026-01-02T03:00:00Z", "2026-01-02T03:00:00", "2026-01-02T03:00:00.5+01:00", "", "x"]
            )
        },
    ),
    max_size=4,
    unique_by=lambda one: one["type"],
)
STATUSES = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"conditions": CONDITIONS}, optional={"progress": st.just({"step": 1})}),
)
MOMENTS = st.integers(-3600, 3600).map(lambda seconds: BEGAN + datetime.timedelta(seconds=seconds))


@given(worlds(), STATUSES, MOMENTS)
def test_of_any_world_something_sound_is_decided(
    drawn: tuple[World, Observed], status: dict[str, Any], now: datetime.datetime
) -> None:
    """No error; the same twice; never both ends; times only on flips; nothing destructive on a cache's word."""
    world, seen = drawn
    before = copy.deepcopy(status)
    plan = decide(world.job, seen, status, DEFAULTS, now)
    assert status == before, "the status given was changed"
    assert plan == decide(world.job, seen, status, DEFAULTS, now)
    if plan.confirm:
        assert not seen.fresh, "asked for fresh reads on fresh reads"
        assert not (plan.applies or plan.patches or plan.deletes or plan.delete_job or plan.status)
        return
    conditions = {one["type"]: one for one in plan.status["conditions"]}
    assert len(conditions) == len(plan.status["conditions"])
    assert not {"Complete", "Failed"} <= conditions.keys()
    known = {one["type"]: one for one in status.get("conditions", ())}
    for type, one in conditions.items():
        since = known.get(type, {}).get("lastTransitionTime")
        if since and known[type]["status"] == one["status"]:
            assert one["lastTransitionTime"] == since
        assert one["reason"]
    if {"Complete", "Failed"} & conditions.keys():
        assert conditions["Ready"]["status"] == "False"
        assert not plan.applies, "something is made for a job that has ended"
    for kind, name, uid, _ in plan.deletes:
        assert seen.children[kind, name].uid == uid
        assert seen.children[kind, name].owner == world.job.uid, "somebody else's object is deleted"
    if any(kind != "PodMonitor" for kind, *_ in plan.deletes) or plan.delete_job:
        assert seen.fresh
    for patch in plan.patches:
        assert patch.child.owner == world.job.uid
        if patch.body.get("spec", {}).get("suspend") is False:
            ids = json.loads(patch.body["metadata"]["annotations"][SERVERS_ANNOTATION])
            assert len(ids) == 2
            assert all(ids), "workers are released beside a server that nobody knows"
    json.dumps(plan.status)


@given(worlds(), STATUSES, MOMENTS)
def test_of_any_world_the_status_is_a_fixed_point(
    drawn: tuple[World, Observed], status: dict[str, Any], now: datetime.datetime
) -> None:
    """The same world with the status that was written of it: the second status written is the last."""
    world, seen = drawn
    seen = replace(seen, fresh=True)
    once = decide(world.job, seen, status, DEFAULTS, now).status
    twice = decide(world.job, seen, once, DEFAULTS, now).status
    thrice = decide(world.job, seen, twice, DEFAULTS, now)
    assert thrice.status == twice
    assert not thrice.events, "said again"


# ---- what is wrong, or was when these were written


def test_bug_a_server_that_waits_for_its_restart_is_lost() -> None:
    """Under CrashLoopBackOff (or an image that cannot be pulled again) the kubelet keeps the old container's id, and
    shows its end as the last state: the rows are gone whenever the next one comes, up to five minutes later.
    """
    world = World()
    world.train()
    backoff = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}}
    world.server(1, container="c-1", ready=False, state=backoff, lastState=OOM, restartCount=5)
    world.look()
    assert world.condition("Failed").get("reason") == "ServerLost"


def test_bug_pods_of_the_set_before_are_not_our_servers() -> None:
    """A job is deleted and made again. The garbage collector deletes the old StatefulSet, then its pods: for a moment
    they are there, ready and not yet told to end, beside the new set. No workers may be released beside them.
    """
    world = World()
    world.look()
    world.servers()
    for body in world.pods.values():
        body["metadata"]["ownerReferences"] = [
            {"kind": "StatefulSet", "name": "flights-server", "uid": "u-set-before", "controller": True}
        ]
    plan = decided(world)
    assert not plan.patches, "the workers were released beside servers that are about to go"


def test_bug_a_workers_job_that_seems_gone_is_looked_for_before_it_is_applied_again() -> None:
    """Applied again it is suspended, which ends its workers. It seems gone when its label was edited away."""
    world = World()
    world.train()
    seen = world.observed()
    without = {key: child for key, child in seen.children.items() if key[0] != "Job"}
    plan = decide(world.job, replace(seen, children=without), world.status, DEFAULTS, world.now)
    assert plan.confirm or not [one for one in plan.applies if one["kind"] == "Job"]


def test_bug_an_object_of_another_name_is_no_conflict() -> None:
    """A user's own Service with the job's label (such as one for a dashboard) stands in nobody's way."""
    world = World()
    world.train()
    own = copy.deepcopy(world.objects["Service", "flights-workers"])
    own["metadata"] |= {"name": "my-dashboard", "uid": "u-mine", "ownerReferences": []}
    world.objects["Service", "my-dashboard"] = own
    world.look()
    assert world.reason == "Training"


def test_bug_a_failed_job_keeps_its_numbers_when_its_workers_are_cleaned_up() -> None:
    """cleanPolicy.onFailure All deletes the workers' Job; how often they failed stays in the status."""
    world = World(job_object({"runPolicy": {"cleanPolicy": {"onFailure": "All"}}}))
    world.train()
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "BackoffLimitExceeded",
        "lastTransitionTime": text(world.now),
    }
    world.counts(ready=0, failed=4, conditions=[failed])
    for _ in range(3):
        world.look()
    assert ("Job", "flights-worker") not in world.objects
    assert world.status["restarts"]["total"] == 4
    assert world.status["workers"]["failed"] == 4


def test_bug_a_service_edited_by_hand_is_put_back() -> None:
    """A Service has no metadata.generation: it is 0 before and after, so it cannot show an edit."""
    world = World()
    world.train()
    service = world.objects["Service", "flights-servers"]
    service["metadata"].pop("generation")
    world.settled[service["metadata"]["uid"]] = 0
    assert settled(world)
    service["spec"]["selector"] = {"edited": "away"}
    service["metadata"]["managedFields"] = [{"manager": "kubectl-edit", "operation": "Update"}]
    assert [one["metadata"]["name"] for one in decided(world).applies] == ["flights-servers"]


def test_bug_the_operators_clock_ahead_does_not_shorten_the_wait_for_the_last_report() -> None:
    """One hour ahead of the API server's (operator-faults.md F43): the workers' end was read a moment ago."""
    world = World()
    world.train()
    world.complete()
    ahead = world.now + datetime.timedelta(hours=1)
    plan = decide(world.job, world.observed(), world.status, DEFAULTS, ahead)
    assert plan.poll == "last"


def test_bug_the_operators_clock_behind_does_not_prolong_the_wait_for_the_last_report() -> None:
    """One hour behind: servers that never answer hold up the end for half a minute of its own clock, not an hour."""
    world = World()
    world.train()
    world.complete()
    world.now -= datetime.timedelta(hours=1)
    world.look()
    world.later(LAST_REPORT_S + 1)
    world.look()
    assert world.condition("Complete").get("status") == "True"


def test_bug_a_note_of_failure_that_was_edited_raises_nothing() -> None:
    """Its time is no time: the job has failed all the same, and is not looked at in vain for ever."""
    world = World()
    world.train()
    note = {"reason": "ServerLost", "message": "m", "time": "yesterday"}
    world.workers["metadata"]["annotations"]["tablebay.dev/failed"] = json.dumps(note)
    world.look()
    assert world.condition("Failed").get("status") == "True"


def test_bug_a_completion_time_written_by_hand_does_not_outlast_training() -> None:
    """The status is overwritten whole, not only its conditions."""
    world = World()
    world.train()
    world.status["completionTime"] = "2020-01-01T00:00:00Z"
    world.look()
    assert "completionTime" not in world.status or world.status["completionTime"] is None


def test_bug_the_last_report_of_a_short_job_is_waited_for_as_well() -> None:
    """Its workers ended before Ready was ever True, so that Ready has been False since the job was made: the half
    minute begins when the end is seen, not then. The very write of the status brings another look, at once.
    """
    world = World()
    world.look()
    world.later(100)
    world.servers()
    world.look()
    world.later(2)
    world.complete()
    assert world.look().poll == "last"
    world.later(1)
    assert world.look().poll == "last"
    assert not world.condition("Complete")
    world.later(LAST_REPORT_S + 1)
    world.look()
    assert world.condition("Complete").get("status") == "True"


def test_bug_pods_of_the_set_before_are_not_our_servers_while_ours_is_not_made() -> None:
    """The apply of the new StatefulSet failed once, that of the workers' Job did not."""
    world = World()
    world.look()
    world.servers()
    for body in world.pods.values():
        body["metadata"]["ownerReferences"] = [
            {"kind": "StatefulSet", "name": "flights-server", "uid": "u-set-before", "controller": True}
        ]
    del world.objects["StatefulSet", "flights-server"]
    assert not decided(world).patches, "the workers were released beside servers that are about to go"


def test_bug_servers_deleted_after_the_end_are_no_first_failure() -> None:
    """The set goes first, and pods of a set that is gone are not looked at: nothing failed all the same."""
    world = World()
    finished(world)
    world.objects.pop(("StatefulSet", "flights-server"), None)
    world.look()
    world.pods = {name: pod for name, pod in world.pods.items() if "server" not in name}
    world.look()
    assert "firstFailure" not in world.status
    assert settled(world)
