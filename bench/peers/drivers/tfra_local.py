"""TensorFlow Recommenders Addons in one process."""

from __future__ import annotations

from driver import serve
from tfra import Tfra

if __name__ == "__main__":
    serve(Tfra)
