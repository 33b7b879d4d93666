"""How a run is shown on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.live import Live

from tablebay.client.cli.view import PlainView, Rate, TerminalView, open_view, words
from tablebay.client.local.report import Figures

COLOUR = "\x1b[36m"


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(text: str) -> str:
    """What a terminal view writes for one line of a worker and one set of figures."""
    stream = Terminal()
    console = Console(file=stream, force_terminal=True, width=200, highlight=False, color_system="standard")
    with Live(console=console, auto_refresh=False, transient=True) as live:
        view = TerminalView(console, live)
        view.line("worker-0", text)
        view.progress(Figures(step=5, loss=0.25), restarts=0)
    return stream.getvalue()


def test_the_progress_line_leaves_out_what_nobody_reported() -> None:
    """Only what is known is said."""
    assert words(Figures(step=5, loss=0.25), None, 2) == "step 5  loss 0.2500  restarts 2"


def test_plain_progress_comes_every_few_seconds() -> None:
    """A hundred updates over ten seconds are two lines, each under the runner's name."""
    now = [0.0]
    stream = io.StringIO()
    view = PlainView(stream, clock=lambda: now[0])
    for tick in range(100):
        now[0] = tick / 10 + 0.1
        view.progress(Figures(step=tick), restarts=0)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("tablebay  | progress: step ") for line in lines)


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """So does a terminal that can do no more."""
    with open_view(io.StringIO()) as view:
        assert isinstance(view, PlainView)
    monkeypatch.setenv("TERM", "dumb")
    with open_view(Terminal()) as view:
        assert isinstance(view, PlainView)


def test_a_terminal_shows_names_in_colour_and_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is coloured, its text is not; what looks like markup is text; the figures come below."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown("loss [red]0.5[/red] :smile:")
    assert f"{COLOUR}worker-0  | \x1b[0mloss [red]0.5[/red] :smile:" in text
    assert "● step 5  loss 0.2500  restarts 0" in text


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR the name is there and its colour is not."""
    monkeypatch.setenv("NO_COLOR", "1")
    text = shown("hello")
    assert "worker-0  | hello" in text
    assert COLOUR not in text


def test_a_rate_is_that_of_the_last_seconds() -> None:
    """A run that slows down is seen to, and a rate is never below 0 (a worker may start again)."""
    now = [0.0]
    rate = Rate(lambda: now[0])
    assert rate.after(None) is None
    assert rate.after(0) is None
    for second in range(1, 21):
        now[0] = float(second)
        fast = rate.after(100 * second)
    assert fast == pytest.approx(100.0)
    for second in range(21, 41):
        now[0] = float(second)
        slow = rate.after(2000 + second)
    assert slow == pytest.approx(1.0)
    now[0] = 41.0
    assert rate.after(0) == 0.0
