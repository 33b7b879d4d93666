"""Workers that come and go: pure. In which order the Job and server 0 hear of another number of them.

Server 0 says to workers how many there are, and for whom a barrier waits. So it hears of more before they start, and
of fewer once they are told to end: a rank that runs is always one that it knows of.
"""

from __future__ import annotations

from tablebay.operator import backoff, live_options
from tablebay.operator.cluster import Manifest
from tablebay.operator.plans import Tell
from tablebay.operator.projections import WorkerJob
from tablebay.operator.world import World


def known(world: World) -> int:
    """How many workers server 0 knows of in its present life; 0 if it was not told."""
    told, lives = world.observed.progress.told, world.identities()
    if told is None or not told.lives or told.lives[0] != lives.get(0):
        return 0
    return told.workers


def may_start(world: World) -> bool:
    """Whether all workers that are wanted may run, as far as server 0 goes."""
    return not world.job.model.spec.workers.elastic or known(world) >= world.worker_replicas


def resized(world: World, found: WorkerJob, waits: backoff.Wait | None = None) -> Manifest:
    """What of the Job's spec says another number of workers than is wanted, and may be changed now."""
    wanted = world.worker_replicas
    if found.completions == wanted:
        at_once = backoff.parallelism(world, found, waits)
        return {} if found.parallelism == at_once else {"parallelism": at_once}
    if wanted > found.completions and not may_start(world):
        return {}
    # Together: an indexed Job takes another number of completions only with as much parallelism.
    return {"parallelism": wanted, "completions": wanted}


def news(world: World, found: WorkerJob | None) -> Tell | None:
    """What the servers are to know, if they do not know it and are all there to hear it."""
    elastic, options = world.job.model.spec.workers.elastic, live_options.told(found)
    lives, wanted = world.identities(), world.worker_replicas if elastic else 0
    if found is None or not (elastic or options):
        return None
    if any(index not in lives for index in range(world.server_replicas)):
        return None
    if elastic and known(world) > wanted and found.completions > wanted:
        # Those who leave are told first.
        return None
    current = tuple(lives[index] for index in range(world.server_replicas))
    tell = Tell(workers=wanted, lives=current, options=options)
    return None if tell == world.observed.progress.told else tell
