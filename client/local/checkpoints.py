"""Where a local run keeps its checkpoints: what a claim is to a cluster, a folder of the run directory is here."""

from __future__ import annotations

import shutil
from pathlib import Path

from tablebay.client import environment as names
from tablebay.client.errors import JobInvalid
from tablebay.client.job import TrainingJob

FOLDER = "volumes"
BEFORE = "volumes-before"
# Written when a run has ended well: the next one does not go on from it.
_FINISHED = "finished"
_PVC = "pvc://"


def variables(job: TrainingJob, run_dir: Path) -> dict[str, str]:
    """What servers are told of checkpoints; nothing where the job makes none. Raises JobInvalid."""
    spec = job.spec
    if spec.checkpoint is None:
        return {}
    checkpoint = spec.checkpoint
    found = {
        names.CHECKPOINT: str(_folder(checkpoint.destination, run_dir)),
        names.CHECKPOINT_EVERY_SECONDS: str(checkpoint.every_seconds or 0),
        names.CHECKPOINT_EVERY_STEPS: str(checkpoint.every_steps or 0),
        names.CHECKPOINT_FULL_EVERY: str(checkpoint.full_every),
        names.CHECKPOINT_RETAIN_LAST: str(checkpoint.retain.last),
        names.CHECKPOINT_TIMEOUT_SECONDS: f"{checkpoint.timeout_seconds:g}",
        names.RESTORE_POLICY: spec.restore.policy,
    }
    source = spec.restore.from_
    found[names.RESTORE_FROM] = source if source in ("Latest", "Never") else str(_folder(source, run_dir))
    return found


def begin(job: TrainingJob, run_dir: Path) -> str:
    """Make the folder ready for a run; what there is to say of it, or ""."""
    folder = run_dir / FOLDER
    why = ""
    if (folder / _FINISHED).exists():
        why = "the run before this one has ended well"
    elif folder.exists() and job.spec.checkpoint is not None and job.spec.restore.from_ == "Never":
        why = "restore.from is Never"
    if why:
        before = run_dir / BEFORE
        shutil.rmtree(before, ignore_errors=True)
        folder.rename(before)
        return f"{why}: this one begins anew, and the checkpoints of the one before are in {before}"
    if job.spec.checkpoint is not None and _folder(job.spec.checkpoint.destination, run_dir).exists():
        return f"going on from the newest checkpoint in {folder}; delete that folder to begin anew"
    return ""


def finish(run_dir: Path) -> None:
    """The run has ended well."""
    folder = run_dir / FOLDER
    if folder.exists():
        (folder / _FINISHED).touch()


def _folder(destination: str, run_dir: Path) -> Path:
    if not destination.startswith(_PVC):
        raise JobInvalid(
            [f"spec.checkpoint.destination: found '{destination}', wanted {_PVC}CLAIM/PATH for a local run"]
        )
    return (run_dir / FOLDER / destination.removeprefix(_PVC)).absolute()
