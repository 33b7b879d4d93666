"""Shows a run on a terminal (its lines, with a live line of figures below) or, elsewhere, as plain lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from tablebay.client.local.report import Figures
from tablebay.client.local.runner import View

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

PROGRESS_EVERY_S = 5.0
_RATE_OVER_S = 5.0
_NAME_CHARACTERS = 9
_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")
RUNNER = "tablebay"


@contextmanager
def open_view(stream: TextIO) -> Iterator[View]:
    """The view that suits the stream."""
    if not stream.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield PlainView(stream)
        return
    # Only here: a run in a pipe starts without it.
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield TerminalView(console, live)


class PlainView:
    """Each line after its process's name, and the figures as one line every few seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._rate = Rate(clock)
        self._said = clock()

    def line(self, name: str, text: str) -> None:
        """A process wrote a line."""
        self._stream.write(f"{name:<{_NAME_CHARACTERS}} | {text}\n")
        self._stream.flush()

    def note(self, text: str) -> None:
        """The runner has something to say."""
        self.line(RUNNER, text)

    def progress(self, found: Figures, *, restarts: int) -> None:
        """New figures."""
        rate = self._rate.after(found.examples)
        if self._clock() - self._said >= PROGRESS_EVERY_S:
            self._said = self._clock()
            self.note("progress: " + words(found, rate, restarts))


class TerminalView:
    """Lines with coloured names; the figures stay on the last line. The console obeys NO_COLOR."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console = console
        self._live = live
        self._rate = Rate(time.monotonic)
        self._colours: dict[str, str] = {}

    def line(self, name: str, text: str) -> None:
        """A process wrote a line."""
        from rich.text import Text

        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        line = Text(f"{name:<{_NAME_CHARACTERS}} | ")
        line.stylize("bold" if name == RUNNER else colour)
        # Joined, not appended to: the name's colour is not that of what it says.
        self._console.print(Text().append_text(line).append_text(Text.from_ansi(text)), soft_wrap=True)

    def note(self, text: str) -> None:
        """The runner has something to say."""
        self.line(RUNNER, text)

    def progress(self, found: Figures, *, restarts: int) -> None:
        """New figures."""
        from rich.text import Text

        text = words(found, self._rate.after(found.examples), restarts)
        self._live.update(Text(f"● {text}", no_wrap=True, overflow="ellipsis", style="bold"), refresh=True)


class Rate:
    """How fast a count grew over the last seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._points: list[tuple[float, float]] = []

    def after(self, count: float | None) -> float | None:
        """The rate now that the count is this; None until there are two counts."""
        if count is None:
            return None
        now = self._clock()
        self._points.append((now, count))
        # The newest point that is old enough is what the rate is measured against.
        while len(self._points) > 2 and now - self._points[1][0] >= _RATE_OVER_S:
            del self._points[0]
        first, before = self._points[0]
        return max(0.0, count - before) / (now - first) if now > first else None


def words(found: Figures, rate: float | None, restarts: int) -> str:
    """The figures on one line, without those that nobody reported."""
    parts = [
        ("step", found.step, "{:,}"),
        ("examples/s", rate, "{:,.0f}"),
        ("loss", found.loss, "{:.4f}"),
        ("AUC", found.auc, "{:.4f}"),
        ("pull p50", found.pull_p50_ms, "{:.2f} ms"),
        ("p99", found.pull_p99_ms, "{:.2f} ms"),
        ("rows", found.rows, "{:,}"),
        ("restarts", restarts, "{:,}"),
    ]
    return "  ".join(f"{name} {form.format(value)}" for name, value, form in parts if value is not None)
