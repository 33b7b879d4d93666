"""What any gRPC tool looks for on the control port: health checks and reflection."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

DATA_SERVICE = "tablebay.v1.Data"
CONTROL_SERVICE = "tablebay.v1.Control"


class StandardServices:
    """Both, added to a server that has not been started. Health says NOT_SERVING until told otherwise."""

    def __init__(self, server: grpc.Server) -> None:
        # A watch then holds no thread of the port's pool.
        self._health = health.HealthServicer(
            experimental_non_blocking=True, experimental_thread_pool=ThreadPoolExecutor(1, "health")
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (DATA_SERVICE, CONTROL_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        self.say("NOT_SERVING")

    def say(self, status: Literal["SERVING", "NOT_SERVING"]) -> None:
        """Tell every health check and every watch."""
        for name in ("", DATA_SERVICE, CONTROL_SERVICE):
            self._health.set(name, getattr(health_pb2.HealthCheckResponse, status))
