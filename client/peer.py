"""Who a process of a job is, as its certificate says: a URI among the certificate's names. Standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from tablebay.client.environment import SERVERS_MAX
from tablebay.client.errors import BadRequest

# client: a person or a program outside the job's pods, without a rank. operator: the cluster's own.
Role = Literal["server", "worker", "operator", "client"]
ROLES: tuple[Role, ...] = get_args(Role)
# Those that come in numbers.
INDEXED: tuple[Role, ...] = ("server", "worker")
RANKS_MAX = 2**32

_PART = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
_URI = re.compile(
    rf"spiffe://tablebay/ns/({_PART})/job/({_PART})/(server|worker|operator|client)(?:/(0|[1-9]\d{{0,9}}))?"
)
WANTED = "spiffe://tablebay/ns/NAMESPACE/job/ID/ROLE, with /INDEX of a server or a worker"


@dataclass(frozen=True)
class Peer:
    """namespace, job: which job; on a cluster `job` is the TrainingJob's uid. index: None of roles without one."""

    namespace: str
    job: str
    role: Role
    index: int | None = None

    @property
    def uri(self) -> str:
        """As it stands in a certificate."""
        text = f"spiffe://tablebay/ns/{self.namespace}/job/{self.job}/{self.role}"
        return text if self.index is None else f"{text}/{self.index}"

    @property
    def name(self) -> str:
        """For messages: `worker 3`."""
        return self.role if self.index is None else f"{self.role} {self.index}"

    @classmethod
    def parse(cls, uri: str) -> Peer:
        """Of a certificate's URI. Raises BadRequest."""
        found = _URI.fullmatch(uri)
        role: Role | None = None if found is None else next(one for one in ROLES if one == found[3])
        if found is None or role is None or (role in INDEXED) != (found[4] is not None):
            raise BadRequest(f"found {uri[:300]!r}, wanted {WANTED}")
        index = None if found[4] is None else int(found[4])
        most = SERVERS_MAX if role == "server" else RANKS_MAX
        if index is not None and index >= most:
            raise BadRequest(f"found {uri[:300]!r}, wanted an index below {most}")
        return cls(found[1], found[2], role, index)

    def same_job(self, other: Peer) -> bool:
        """Whether both are of one job."""
        return (self.namespace, self.job) == (other.namespace, other.job)
