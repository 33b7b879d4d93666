"""A job with every field that this version knows, so that an older chart refuses it by the names that it lacks.

It is one that a chart of this version takes: fields that exclude one another are in tables of their own.
"""

from __future__ import annotations

from typing import Any

from tablebay.client.job import API_VERSION, KIND
from tablebay.client.optimizers import OPTIMIZERS
from tablebay.client.tables import INITIALIZERS

Fields = dict[str, Any]

# Of the optimizers, those which have a field that none before them has.
_OPTIMIZERS: dict[str, Fields] = {
    "Adam": {
        "learningRate": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "epsilon": 1e-6,
        "clipValue": 1.0,
        "clipNorm": 1.0,
        "weightBound": 1.0,
        "schedule": "Cosine",
        "scheduleSteps": 10,
        "scheduleTo": 0.5,
        "warmupSteps": 1,
        "weightDecay": 0.1,
        "decoupled": True,
        "clock": "Row",
    },
    "DecayedAdagrad": {"rho": 0.9, "initialAccumulator": 0.1},
    "GroupFTRL": {"beta": 1.0, "l1": 0.1, "l2": 0.1, "l21": 0.1},
    "Momentum": {"momentum": 0.9},
    "TensorFlowFTRL": {"l2Shrinkage": 0.1},
}
_INITIALIZERS: dict[str, Fields] = {
    "Constant": {"value": 1.0},
    "Normal": {"stddev": 0.1, "mean": 0.0},
    "Uniform": {"low": -1.0, "high": 1.0},
    "Xavier": {"fanIn": 4},
}
_OTHERS: list[Fields] = [
    {"dtype": "float32", "seed": 1, "nonFinite": "Reject", "pushMissing": "Create"},
    {"admitAt": 2, "admitFilterKeys": 1000},
    {"admitProbability": 0.5},
    {
        "eviction": {
            "ttlSeconds": 60,
            "minCount": 1,
            "minNorm": 0.1,
            "graceSeconds": 60,
            "maxRows": 1000,
            "maxBytes": 1_000_000,
            "policy": "LFU",
            "decay": 0.9,
            "minScore": 0.1,
            "showWeight": 0.5,
            "clickWeight": 1.0,
            "maxUnseenDays": 7,
            "decayEverySeconds": 60,
            "everySeconds": 60,
            "eventsKept": 100,
        }
    },
]


def job(name: str) -> Fields:
    """The job, of that name."""
    template = {
        "metadata": {"labels": {"example.com/of": "doctor"}},
        "spec": {"containers": [{"name": "worker", "image": "none", "command": ["true"]}]},
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "suspend": True,
            "image": "none",
            "tableDefaults": {"dim": 4},
            "tables": _tables(),
            "servers": {
                "replicas": 1,
                "image": "none",
                "template": {"metadata": template["metadata"], "spec": {"nodeSelector": {"of": "doctor"}}},
                "storage": {
                    "size": "1Gi",
                    "storageClassName": "none",
                    "retention": {"whenDeleted": "Delete"},
                },
                "onFinish": "Delete",
                "podDisruptionBudget": {"maxUnavailable": 1},
            },
            "workers": {"replicas": 1, "minReplicas": 1, "maxReplicas": 2, "template": template},
            "runPolicy": {
                "activeDeadlineSeconds": 60,
                "preRunningDeadlineSeconds": 60,
                "ttlSecondsAfterFinished": 60,
                "cleanPolicy": {"onSuccess": "Running", "onFailure": "Running"},
                "failurePolicy": {
                    "maxRestarts": 3,
                    "windowSeconds": 60,
                    "backoff": {"initialSeconds": 1, "factor": 2, "maxSeconds": 60},
                    "rules": [
                        {
                            "name": "codes",
                            "target": "Workers",
                            "onExitCodes": {"operator": "In", "values": [42]},
                            "action": "FailJob",
                        },
                        {
                            "name": "conditions",
                            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                            "action": "Ignore",
                        },
                        {"name": "reasons", "onReasons": ["OOMKilled"], "action": "Ignore"},
                    ],
                },
                "successPolicy": {"operator": "All"},
            },
            "scheduling": {
                "priorityClassName": "none",
                "schedulerName": "none",
                "gang": "Volcano",
                "queue": "none",
            },
            "monitoring": {"podMonitor": "Auto"},
            "network": {"policy": "Isolated", "tls": "Enabled"},
            "checkpoint": {
                "destination": "pvc://claim/folder",
                "claim": {"size": "1Gi", "storageClassName": "none", "accessModes": ["ReadWriteMany"]},
                "everySeconds": 60,
                "everySteps": 100,
                "fullEvery": 2,
                "when": ["Delete", "Suspend"],
                "timeoutSeconds": 60,
                "retain": {"last": 2},
            },
            "durability": {"mode": "checkpoint"},
            "restore": {"from": "Latest", "policy": "IfExists"},
        },
    }


def _tables() -> list[Fields]:
    parts = list(_OTHERS)
    parts += [{"optimizer": {"type": name, **_OPTIMIZERS.get(name, {})}} for name in OPTIMIZERS]
    parts += [{"initializer": {"type": name, **_INITIALIZERS.get(name, {})}} for name in INITIALIZERS]
    return [{"name": f"t{number}", "dim": 4, **part} for number, part in enumerate(parts)]
