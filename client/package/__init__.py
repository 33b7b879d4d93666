"""Tablebay: huge embedding tables for recommendation, ads and search models.

``import tablebay as tb`` gives the names below; each is imported when it is first used, so that starting the
operator or printing a version loads neither numpy nor grpc. Installed as ``tablebay/__init__.py``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_ERRORS = (
    "BadRequest",
    "BadType",
    "CheckpointFailed",
    "CheckpointInvalid",
    "CheckpointMismatch",
    "Closed",
    "CorruptMessage",
    "DeadlineExceeded",
    "Fenced",
    "Forked",
    "JobFailed",
    "JobInvalid",
    "NonFinite",
    "NotRegistered",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerLost",
    "TableMismatch",
    "TablebayError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VersionMismatch",
    "WrongShard",
)
_HOME = {
    "Client": "client.client",
    "connect": "client.client",
    "local": "client.inprocess",
    "Table": "client.local_table",
    "PythonTable": "client.python_table",
    "Evictions": "client.evictions",
    "open": "client.frozen",
    "LearningMetrics": "client.learning",
    "CriteoBatch": "client.criteo",
    "hash_ids": "client.criteo",
    "read_criteo": "client.criteo",
    **dict.fromkeys(
        (
            "SGD",
            "Momentum",
            "Nesterov",
            "Adagrad",
            "RowwiseAdagrad",
            "DecayedAdagrad",
            "Adam",
            "AdamW",
            "AMSGrad",
            "PartialRowwiseAdam",
            "LAMB",
            "RMSProp",
            "AdaDelta",
            "FTRL",
            "GroupFTRL",
            "TensorNetAdagrad",
            "TensorNetAdam",
            "TensorNetFTRL",
            "PaddleAdagrad",
            "TensorFlowFTRL",
            "Add",
        ),
        "client.optimizers",
    ),
    **dict.fromkeys(
        (
            "Zeros",
            "Constant",
            "Uniform",
            "Normal",
            "TruncatedNormal",
            "Xavier",
            "Eviction",
            "TableSpec",
        ),
        "client.tables",
    ),
    **dict.fromkeys(_ERRORS, "client.errors"),
}

# Less `open`: `from tablebay import *` hides no builtin. Less `torch`, which needs PyTorch.
__all__ = ["__version__", "errors", "jobs", *(name for name in _HOME if name != "open")]  # noqa: PLE0604

if TYPE_CHECKING:
    from tablebay.client import errors as errors
    from tablebay.client import jobs as jobs
    from tablebay.client import torch as torch
    from tablebay.client.client import Client as Client
    from tablebay.client.client import connect as connect
    from tablebay.client.criteo import CriteoBatch as CriteoBatch
    from tablebay.client.criteo import hash_ids as hash_ids
    from tablebay.client.criteo import read_criteo as read_criteo
    from tablebay.client.errors import BadRequest as BadRequest
    from tablebay.client.errors import BadType as BadType
    from tablebay.client.errors import CheckpointFailed as CheckpointFailed
    from tablebay.client.errors import CheckpointInvalid as CheckpointInvalid
    from tablebay.client.errors import CheckpointMismatch as CheckpointMismatch
    from tablebay.client.errors import Closed as Closed
    from tablebay.client.errors import CorruptMessage as CorruptMessage
    from tablebay.client.errors import DeadlineExceeded as DeadlineExceeded
    from tablebay.client.errors import Fenced as Fenced
    from tablebay.client.errors import Forked as Forked
    from tablebay.client.errors import JobFailed as JobFailed
    from tablebay.client.errors import JobInvalid as JobInvalid
    from tablebay.client.errors import NonFinite as NonFinite
    from tablebay.client.errors import NotRegistered as NotRegistered
    from tablebay.client.errors import OutOfRange as OutOfRange
    from tablebay.client.errors import PermissionDenied as PermissionDenied
    from tablebay.client.errors import ResourceExhausted as ResourceExhausted
    from tablebay.client.errors import ServerLost as ServerLost
    from tablebay.client.errors import TablebayError as TablebayError
    from tablebay.client.errors import TableMismatch as TableMismatch
    from tablebay.client.errors import Unauthenticated as Unauthenticated
    from tablebay.client.errors import Unavailable as Unavailable
    from tablebay.client.errors import Unimplemented as Unimplemented
    from tablebay.client.errors import VersionMismatch as VersionMismatch
    from tablebay.client.errors import WrongShard as WrongShard
    from tablebay.client.evictions import Evictions as Evictions
    from tablebay.client.frozen import open as open
    from tablebay.client.inprocess import local as local
    from tablebay.client.learning import LearningMetrics as LearningMetrics
    from tablebay.client.local_table import Table as Table
    from tablebay.client.optimizers import FTRL as FTRL
    from tablebay.client.optimizers import LAMB as LAMB
    from tablebay.client.optimizers import SGD as SGD
    from tablebay.client.optimizers import AdaDelta as AdaDelta
    from tablebay.client.optimizers import Adagrad as Adagrad
    from tablebay.client.optimizers import Adam as Adam
    from tablebay.client.optimizers import AdamW as AdamW
    from tablebay.client.optimizers import Add as Add
    from tablebay.client.optimizers import AMSGrad as AMSGrad
    from tablebay.client.optimizers import DecayedAdagrad as DecayedAdagrad
    from tablebay.client.optimizers import GroupFTRL as GroupFTRL
    from tablebay.client.optimizers import Momentum as Momentum
    from tablebay.client.optimizers import Nesterov as Nesterov
    from tablebay.client.optimizers import PaddleAdagrad as PaddleAdagrad
    from tablebay.client.optimizers import PartialRowwiseAdam as PartialRowwiseAdam
    from tablebay.client.optimizers import RMSProp as RMSProp
    from tablebay.client.optimizers import RowwiseAdagrad as RowwiseAdagrad
    from tablebay.client.optimizers import TensorFlowFTRL as TensorFlowFTRL
    from tablebay.client.optimizers import TensorNetAdagrad as TensorNetAdagrad
    from tablebay.client.optimizers import TensorNetAdam as TensorNetAdam
    from tablebay.client.optimizers import TensorNetFTRL as TensorNetFTRL
    from tablebay.client.python_table import PythonTable as PythonTable
    from tablebay.client.tables import Constant as Constant
    from tablebay.client.tables import Eviction as Eviction
    from tablebay.client.tables import Normal as Normal
    from tablebay.client.tables import TableSpec as TableSpec
    from tablebay.client.tables import TruncatedNormal as TruncatedNormal
    from tablebay.client.tables import Uniform as Uniform
    from tablebay.client.tables import Xavier as Xavier
    from tablebay.client.tables import Zeros as Zeros


def __getattr__(name: str) -> object:
    if name in ("errors", "jobs", "torch"):
        return importlib.import_module(f"tablebay.client.{name}")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'tablebay' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tablebay.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted((*__all__, "open", "torch"))
