"""A network that delays, drops, doubles and reorders, by a seed: the same seed, the same run.

It carries the real client's bytes to real services. Time is virtual: it goes on only while everybody waits. What
runs side by side (`Network.start`) has threads of its own, of which one runs at a time: the seed says which.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tablebay.client import errors
from tablebay.client.proto import tablebay_pb2 as messages
from tablebay.client.retry import Pace
from tablebay.client.transport import Answer
from tablebay.ps_server.service import Service


@dataclass(frozen=True)
class Faults:
    """How often each thing happens to a message, 0 to 1; delay: the longest, in virtual seconds."""

    drop_request: float = 0.0
    drop_answer: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0


@dataclass
class Network:
    """Servers, and the messages on their way to them.

    struck: how often each fault has happened. farthest: by how many steps a push was overtaken at most.
    """

    services: Sequence[Service]
    faults: Faults
    seed: int
    now: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    farthest: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._tasks: list[_Task] = []
        self._running: _Task | None = None
        self._answered = False
        # By server and client, the steps that have come.
        self._seen: dict[tuple[int, int, int], set[int]] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def pace(self) -> Pace:
        """The clock, sleep and randomness of a client in this network."""
        return Pace(clock=lambda: self.now, sleep=self.sleep, random=random.Random(self.random.random()))

    def sleep(self, seconds: float) -> None:
        """Let the network work meanwhile."""
        self.wait(lambda: False, self.now + seconds)

    def wait(self, until: Callable[[], bool], end: float) -> None:
        """Let the network, and whatever runs beside the caller, work until something is so, or until a time."""
        task = self._running
        if task is None:
            while not until() and self.step(end):
                pass
            return
        task.until, task.end = until, end
        following = self._following()
        if following is not task:
            following.go.release()
            task.go.acquire()
            self._running = task

    def start(self, what: Callable[[], None]) -> None:
        """Something that `run` runs beside others."""
        self._tasks.append(_Task(what))

    def run(self) -> None:
        """All that was started, to its end. Raises what one of them raised."""
        failed: list[BaseException] = []
        end = threading.Lock()
        end.acquire()

        def live(task: _Task) -> None:
            task.go.acquire()
            self._running = task
            try:
                task.what()
                self._tasks.remove(task)
                following = self._following() if self._tasks else None
            except BaseException as error:  # noqa: BLE001 - raised again below
                failed.append(error)
                following = None
            (end if following is None else following.go).release()

        if self._tasks:
            for task in self._tasks:
                threading.Thread(target=live, args=(task,), daemon=True).start()
            self._following().go.release()
            end.acquire()
            self._running = None
        if failed:
            raise failed[0]

    def _following(self) -> _Task:
        """Who runs next: one of those who can, when the network has worked until there is one."""
        while True:
            able = [task for task in self._tasks if self.now >= task.end or task.until()]
            if able:
                return self.random.choice(able)
            # Between two answers nobody's `until` changes: all else that happens is the servers' business.
            end = min(task.end for task in self._tasks)
            self._answered = False
            while not self._answered and self.step(end):
                pass

    def after(self, delay: float, what: Callable[[], None]) -> None:
        """Do something in so many virtual seconds."""
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, what))

    def step(self, until: float) -> bool:
        """The next event, if there is one by then."""
        if not self._events or self._events[0][0] > until:
            self.now = max(self.now, until)
            return False
        at, _, what = heapq.heappop(self._events)
        self.now = max(self.now, at)
        what()
        return True

    def settle(self) -> None:
        """Everything still on its way, however late."""
        while self._events:
            self.step(self._events[0][0])

    def strikes(self, fault: str, chance: float) -> bool:
        """Whether a fault happens now; counted."""
        if self.random.random() >= chance:
            return False
        self.struck[fault] += 1
        return True

    def delay(self) -> float:
        """How long one message takes."""
        return self.random.uniform(0.0, self.faults.delay)

    def note_answer(self) -> None:
        """Somebody may go on."""
        self._answered = True

    def note_arrival(self, server: int, method: str, request: bytes) -> None:
        """Count a push that comes for the first time when a later step of its client has come before it."""
        if method not in ("Push", "Step"):
            return
        kind = messages.PushRequest if method == "Push" else messages.StepRequest
        push = kind.FromString(request)
        seen = self._seen.setdefault((server, push.sender.client_high, push.sender.client_low), set())
        self.struck["cut"] += push.piece > 0
        ahead = max(seen, default=-1) - push.step
        if push.step not in seen and ahead > 0:
            self.struck["overtaken"] += 1
            self.farthest = max(self.farthest, ahead)
        seen.add(push.step)


class VirtualLock:
    """In the place of a threading.Lock that is held over calls: whoever waits for it lets the network work."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._held = False

    def acquire(self, timeout: float) -> bool:
        """Whether it is the caller's now; waits so many virtual seconds."""
        self._network.wait(lambda: not self._held, self._network.now + timeout)
        if self._held:
            return False
        self._held = True
        return True

    def release(self) -> None:
        """For the next one."""
        self._held = False


class _Task:
    """What runs beside others, in a thread that may run when `go` has been released.

    until, end: what it waits for, and until when at most.
    """

    def __init__(self, what: Callable[[], None]) -> None:
        self.what = what
        self.until: Callable[[], bool] = lambda: True
        self.end = 0.0
        self.go = threading.Lock()
        self.go.acquire()


class SimulatedTransport:
    """A client's way into the network. Faults strike data calls; control calls only take time."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def addresses(self) -> Sequence[str]:
        """Names for messages."""
        return [f"simulated:{server}" for server in range(len(self._network.services))]

    def call(self, server: int, method: str, request: bytes, timeout: float, wait: bool = False) -> Answer:
        """Send; copies of the request may arrive, each handled, the first answer to come back counting."""
        network = self._network
        pending = _Pending(network, network.now + timeout, f"{method} to simulated:{server}")
        data = method in ("Pull", "Push", "Step")
        copies = 2 if data and network.strikes("duplicate", network.faults.duplicate) else 1
        for _ in range(copies):
            if data and network.strikes("drop_request", network.faults.drop_request):
                continue
            network.after(network.delay(), lambda: self._arrive(server, method, request, pending, data))
        return pending

    def _arrive(self, server: int, method: str, request: bytes, pending: _Pending, data: bool) -> None:
        network = self._network
        network.note_arrival(server, method, request)
        answer: bytes | errors.TablebayError
        try:
            answer = network.services[server].handle(method, request)
        except errors.TablebayError as error:
            answer = error
        if data and network.strikes("drop_answer", network.faults.drop_answer):
            return
        network.after(network.delay(), lambda: pending.settle(answer))

    def rebuild(self) -> None:
        """There are no connections."""

    def close(self) -> None:
        """Messages on their way still arrive."""


class _Pending:
    def __init__(self, network: Network, deadline: float, what: str) -> None:
        self._network = network
        self._deadline = deadline
        self._what = what
        self._answer: bytes | errors.TablebayError | None = None

    def settle(self, answer: bytes | errors.TablebayError) -> None:
        if self._answer is None:
            self._answer = answer
            self._network.note_answer()

    def result(self) -> bytes:
        # A client gives up on one attempt well before its whole deadline, as a broken connection would tell it.
        end = min(self._deadline, self._network.now + 1.0)
        self._network.wait(lambda: self._answer is not None, end)
        if self._answer is None:
            raise errors.Unavailable(f"{self._what}: no answer")
        if isinstance(self._answer, errors.TablebayError):
            raise self._answer
        return self._answer

    def cancel(self) -> object:
        return False
