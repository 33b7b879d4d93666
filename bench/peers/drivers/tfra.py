"""TensorFlow Recommenders Addons: a dynamic table of weights and one of accumulators, on any device.

A push looks up both, computes Adagrad and writes both, as its DynamicEmbeddingOptimizer does, without what that
does beside.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import peer_workload as workload
import tensorflow as tf
from driver import Driver
from tensorflow_recommenders_addons import dynamic_embedding as de


class Tfra(Driver):
    """there: the device that holds the tables. here: the client's."""

    there = here = "/CPU:0"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with tf.device(self.here):
            self._ids = [tf.constant(batch.ids) for batch in self.batches]
            self._unique = [tf.constant(batch.unique) for batch in self.batches]
            self._grads = [tf.constant(self.gradients[: len(batch.unique)]) for batch in self.batches]
            self._raw_grads = tf.constant(self.gradients)
        self._make()

    def version(self) -> str:
        return f"tensorflow-recommenders-addons 0.7.2 on tensorflow {tf.__version__}"

    def _table(self, name: str, value: float) -> de.Variable:
        return de.get_variable(
            name,
            key_dtype=tf.int64,
            value_dtype=tf.float32,
            dim=workload.DIM,
            devices=[self.there],
            initializer=value,
        )

    def _make(self) -> None:
        weight, accumulator = self._table("weight", 0.0), self._table("accumulator", workload.ACCUMULATOR)
        self._tables = (weight, accumulator)
        keys, values = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, workload.DIM])

        @tf.function(input_signature=[keys])
        def pull(ids):
            rows = weight.lookup(ids)
            with tf.device(self.here):
                return tf.identity(rows)

        @tf.function(input_signature=[keys, values])
        def push(ids, gradients):
            with tf.device(self.there):
                rows, sums = weight.lookup(ids), accumulator.lookup(ids)
                sums += gradients * gradients
                rows -= workload.LEARNING_RATE * gradients / (tf.sqrt(sums) + workload.EPSILON)
                with tf.control_dependencies([weight.upsert(ids, rows), accumulator.upsert(ids, sums)]):
                    return tf.constant(0)

        @tf.function(input_signature=[keys, values])
        def push_summed(ids, gradients):
            with tf.device(self.here):
                unique, place = tf.unique(ids, out_idx=tf.int64)
                summed = tf.math.unsorted_segment_sum(gradients, place, tf.size(unique))
            return push(unique, summed)

        @tf.function(input_signature=[keys, values])
        def insert(ids, rows):
            with tf.device(self.there):
                sums = tf.fill(tf.shape(rows), workload.ACCUMULATOR)
                with tf.control_dependencies([weight.upsert(ids, rows), accumulator.upsert(ids, sums)]):
                    return tf.constant(0)

        self._pull, self._push, self._push_summed, self._insert = pull, push, push_summed, insert

    def fill(self, first: int, last: int) -> None:
        rows = workload.gradients(workload.FILL)
        for keys in workload.fill_keys(first, last):
            self._insert(tf.constant(keys), tf.constant(rows[: len(keys)]))

    def rows(self, number: int) -> np.ndarray:
        return self._pull(self._unique[number]).numpy()

    def pull_uniq(self, number: int) -> None:
        self._pull(self._unique[number]).numpy()

    def pull_raw(self, number: int) -> None:
        self._pull(self._ids[number]).numpy()

    def push_uniq(self, number: int) -> None:
        self._push(self._unique[number], self._grads[number]).numpy()

    def push_raw(self, number: int) -> None:
        self._push_summed(self._ids[number], self._raw_grads).numpy()

    def step_uniq(self, number: int) -> None:
        self.pull_uniq(number)
        self.push_uniq(number)

    def step_raw(self, number: int) -> None:
        self.pull_raw(number)
        self.push_raw(number)

    def prepare_cold(self, number: int) -> None:
        with tf.device(self.here):
            self._cold = tf.constant(workload.cold_keys(number))
            self._new = tf.constant(workload.gradients(workload.COLD_BATCH))

    def cold(self, number: int) -> None:
        self._insert(self._cold, self._new).numpy()
