"""TensorFlow: a variable on the gRPC server of a parameter-server task, with the kernel of its sparse Adagrad."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import peer_workload as workload
import tensorflow as tf
from driver import Driver, free_port, serve

PS = "/job:ps/replica:0/task:0/device:CPU:0"
HERE = "/job:worker/replica:0/task:0/device:CPU:0"
RANDOM_ROWS = 1_000_000


def cluster(ports: list[str]) -> tf.train.ClusterSpec:
    return tf.train.ClusterSpec({"ps": [f"127.0.0.1:{ports[0]}"], "worker": [f"127.0.0.1:{ports[1]}"]})


def join() -> subprocess.Popen[bytes]:
    """Starts the parameter server and connects to it; returns its process."""
    ports = [str(free_port()), str(free_port())]
    server = subprocess.Popen([sys.executable, sys.argv[0], "serve", *ports])
    tf.config.experimental_connect_to_cluster(cluster(ports), job_name="worker", task_index=0)
    return server


def serve_ps(ports: list[str]) -> None:
    tf.distribute.Server(cluster(ports), job_name="ps", task_index=0, protocol="grpc").join()


class TensorflowGrpc(Driver):
    """Ids are rows of the variable."""

    dense = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._server = join()
        with tf.device(HERE):
            self._ids = [tf.constant(batch.ids) for batch in self.batches]
            self._unique = [tf.constant(batch.unique) for batch in self.batches]
            self._grads = [tf.constant(self.gradients[: len(batch.unique)]) for batch in self.batches]
            self._raw_grads = tf.constant(self.gradients)

    def version(self) -> str:
        return f"tensorflow {tf.__version__}"

    def holder(self) -> int:
        return self._server.pid

    def fill(self, first: int, last: int) -> None:
        if first != 0:
            return
        shape = (workload.NIDS, workload.DIM)
        with tf.device(PS):
            weight = tf.Variable(tf.random.normal(shape, 0.0, 0.01))
            accumulator = tf.Variable(tf.fill(shape, workload.ACCUMULATOR))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
        def pull(ids):
            with tf.device(PS):
                rows = weight.sparse_read(ids)
            with tf.device(HERE):
                return tf.identity(rows)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, workload.DIM])])
        def push(ids, gradients):
            with tf.device(PS):
                tf.raw_ops.ResourceSparseApplyAdagradV2(
                    var=weight.handle,
                    accum=accumulator.handle,
                    lr=workload.LEARNING_RATE,
                    epsilon=workload.EPSILON,
                    grad=gradients,
                    indices=ids,
                )

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, workload.DIM])])
        def push_summed(ids, gradients):
            # As TensorFlow's optimizers do with repeated indices, where the gradients are.
            with tf.device(HERE):
                unique, place = tf.unique(ids, out_idx=tf.int64)
                summed = tf.math.unsorted_segment_sum(gradients, place, tf.size(unique))
            push(unique, summed)

        self._pull, self._push, self._push_summed = pull, push, push_summed

    def rows(self, number: int) -> np.ndarray:
        return self._pull(self._unique[number]).numpy()

    def pull_uniq(self, number: int) -> None:
        self._pull(self._unique[number]).numpy()

    def pull_raw(self, number: int) -> None:
        self._pull(self._ids[number]).numpy()

    def push_uniq(self, number: int) -> None:
        self._push(self._unique[number], self._grads[number])

    def push_raw(self, number: int) -> None:
        self._push_summed(self._ids[number], self._raw_grads)

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve_ps(sys.argv[2:])
    else:
        serve(TensorflowGrpc)
