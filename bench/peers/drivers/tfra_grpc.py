"""TensorFlow Recommenders Addons with its tables on TensorFlow's gRPC server."""

from __future__ import annotations

import sys
from pathlib import Path

from driver import serve
from tensorflow_grpc import HERE, PS, join, serve_ps
from tfra import Tfra


class TfraGrpc(Tfra):
    """A client and a parameter-server task."""

    there, here = PS, HERE

    def __init__(self, folder: Path) -> None:
        self._server = join()
        super().__init__(folder)

    def holder(self) -> int:
        return self._server.pid

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve_ps(sys.argv[2:])
    else:
        serve(TfraGrpc)
