"""Tensors on their way between this process's memory and a device: on CUDA beside what the device computes.

A CUDA device's copies have a stream of their own, and pinned memory at the host's end. Elsewhere a tensor that is there
already is not copied. Those who send and take are the same for all devices.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

_STREAMS: dict[int, Any] = {}
_STREAMS_LOCK = threading.Lock()


@dataclass(frozen=True)
class Sent:
    """A tensor that may still be on its way. arrived: the event that it is there; None where it is there."""

    tensor: torch.Tensor
    arrived: Any = None

    def take(self) -> torch.Tensor:
        """For work on the device: what is computed from now on waits for it, the caller does not."""
        if self.arrived is not None:
            current = torch.cuda.current_stream(self.tensor.device)
            current.wait_event(self.arrived)
            # Its memory is of the other stream: it may not be used again before this one is done with it.
            self.tensor.record_stream(current)
        return self.tensor

    def wait(self) -> torch.Tensor:
        """For work on the host: return when it is there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.tensor


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory of this process, of which `device` can copy by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")


def send(tensor: torch.Tensor, device: torch.device) -> Sent:
    """Send a tensor of this process's memory to `device`."""
    if device.type != "cuda":
        return Sent(tensor.to(device))
    # A tensor that is pinned already is taken as it is.
    pinned = tensor.pin_memory()
    stream = _stream(device)
    with torch.cuda.stream(stream):
        there = pinned.to(device, non_blocking=True)
        return Sent(there, stream.record_event())


def fetch(tensor: torch.Tensor) -> Sent:
    """Bring a tensor to this process's memory, as it is when what its device has been given so far is done."""
    if not tensor.is_cuda:
        return Sent(tensor.cpu())
    stream = _stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    here = host_buffer(tuple(tensor.shape), tensor.dtype, tensor.device)
    with torch.cuda.stream(stream):
        here.copy_(tensor, non_blocking=True)
        tensor.record_stream(stream)
        return Sent(here, stream.record_event())


def _stream(device: torch.device) -> Any:
    index = torch.cuda.current_device() if device.index is None else device.index
    with _STREAMS_LOCK:
        if index not in _STREAMS:
            _STREAMS[index] = torch.cuda.Stream(index)
        return _STREAMS[index]
