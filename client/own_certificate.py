"""`tablebay-own-certificate`: gives a pod's other containers the pair of this pod alone, for as long as it runs.

All pods of one role are made of one template, so they mount the same Secrets, with the pairs of all of them. Only the
container that runs this mounts those; the others find what it writes here. Standard library only: it is in every pod.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from tablebay.client.tls import AUTHORITIES, CERTIFICATE, KEY

# A Secret comes to a pod within a minute or two; this adds nothing to that.
LOOK_EVERY_S = 1.0
# Of --wait: how long the first pair may take.
FIRST_S = 60.0


def pair_files(index: int) -> tuple[str, str]:
    """In a Secret with the pairs of many: the names of the key and the certificate of one."""
    return f"{index}.key", f"{index}.crt"


class OwnCertificate:
    """pairs: the folder with everybody's. to: what the others are given, a link to a folder that never changes."""

    def __init__(self, pairs: Path, to: Path, index: int) -> None:
        self._pairs, self._to, self._index = pairs, to, index
        self._written: list[bytes] = []

    def look(self) -> bool:
        """Write the pair if it is another one than before; whether it was. Raises OSError where it cannot be read."""
        # A volume of Secrets changes by one link, ..data: what it points to now is of one moment.
        data = self._pairs / "..data"
        folder = Path(os.path.realpath(data if data.is_symlink() else self._pairs))
        key, certificate = pair_files(self._index)
        texts = [(folder / name).read_bytes() for name in (key, certificate, AUTHORITIES)]
        if texts == self._written:
            return False
        self._write(texts)
        self._written = texts
        return True

    def _write(self, texts: Sequence[bytes]) -> None:
        above = self._to.parent
        before = [one for one in above.glob("..*") if one.is_dir() and not one.is_symlink()]
        new = Path(tempfile.mkdtemp(prefix="..", dir=above))
        # For the group of the pod's volumes, which other containers are in whatever their user is.
        new.chmod(0o2750)
        for name, text in zip((KEY, CERTIFICATE, AUTHORITIES), texts, strict=True):
            with open(os.open(new / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "wb") as file:
                os.fchmod(file.fileno(), 0o640)
                file.write(text)
        link = above / f"{new.name}.link"
        # Relative: the folder is mounted elsewhere in the others.
        link.symlink_to(new.name)
        link.replace(self._to)
        for old in before:
            shutil.rmtree(old, ignore_errors=True)


def follow(own: OwnCertificate, stop: Callable[[float], bool], say: Callable[[str], None]) -> None:
    """Look until `stop`, which waits for so many seconds, says so. What cannot be read now may be there later."""
    trouble = ""
    while True:
        try:
            if own.look():
                say("written")
            trouble = ""
        except OSError as error:
            if str(error) != trouble:
                trouble = str(error)
                say(f"cannot be read yet: {trouble}")
        if stop(LOOK_EVERY_S):
            return


def wait_for(to: Path, seconds: float = FIRST_S) -> bool:
    """Whether the pair is there in time."""
    until = time.monotonic() + seconds
    while not (to / AUTHORITIES).exists():
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 once told to end, or once the pair is there with --wait."""
    parser = argparse.ArgumentParser(
        prog="tablebay-own-certificate",
        description="Writes this pod's certificate where its other containers find it, and follows renewals.",
    )
    parser.add_argument("--pairs", type=Path, help="the folder with the pairs of all pods")
    parser.add_argument("--index", type=int, help="which of them is this pod's")
    parser.add_argument("--to", type=Path, required=True, help="where to; a link that is set anew")
    parser.add_argument("--wait", action="store_true", help="only wait until it is there")
    options = parser.parse_args(arguments)
    if options.wait:
        return 0 if wait_for(options.to) else 1
    if options.pairs is None or options.index is None:
        parser.error("wanted --pairs and --index, or --wait")
    ended: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        ended.append(number)
        raise SystemExit(0)

    def stop(seconds: float) -> bool:
        time.sleep(seconds)
        return bool(ended)

    # The first process of a container ends on a signal only if it says so.
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    os.umask(0o027)

    def say(text: str) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {
            "time": now,
            "level": "info",
            "event": "certificate.own",
            "index": options.index,
            "state": text,
        }
        print(json.dumps(line), file=sys.stderr, flush=True)

    with contextlib.suppress(SystemExit):
        follow(OwnCertificate(options.pairs, options.to, options.index), stop, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
