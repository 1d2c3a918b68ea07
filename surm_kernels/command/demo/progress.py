"""Progress of the runs: moving bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from surm_kernels.command.demo.training import Event

LOG_LINES = 10
LOSS_MEMORY = 0.9


class RunProgress:
    """Context in which events of one run after the other are shown."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.title, self.width = "", 0
        self.task: TaskID | None = None
        self.started = 0.0
        self.loss: float | None = None
        self.accuracy: float | None = None
        self.next_log = 0

    def __enter__(self) -> RunProgress:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def begin(self, title: str, width: int) -> None:
        """A new run is about to start; `width` aligns the titles."""
        self.title, self.width, self.started = title, width, time.perf_counter()
        self.loss = self.accuracy = None
        self.next_log = 0
        self.task = self.bars.add_task(title.ljust(width), total=None, note="loading the model")
        self._log("loading the model")

    def show(self, event: Event) -> None:
        """An event of the present run has come."""
        if event.loss is not None:
            previous = event.loss if self.loss is None else self.loss
            self.loss = LOSS_MEMORY * previous + (1 - LOSS_MEMORY) * event.loss
        if event.accuracy is not None:
            self.accuracy = event.accuracy
        note = self._note(event.stage)
        if self.task is not None:
            self.bars.update(self.task, total=event.steps, completed=event.step, note=note)
        if event.accuracy is not None or (event.stage != "testing" and event.step >= self.next_log):
            self._log(f"step {event.step:4d} of {event.steps}  {note}")
            self.next_log = event.step + max(1, event.steps // LOG_LINES)

    def _note(self, stage: str) -> str:
        parts = [] if self.loss is None else [f"loss {self.loss:.3f}"]
        parts += [] if self.accuracy is None else [f"accuracy {self.accuracy:.3f}"]
        return "  ".join(parts + [stage] * (stage != "training"))

    def _log(self, text: str) -> None:
        if not self.console.is_terminal:
            seconds = time.perf_counter() - self.started
            self.console.print(f"{self.title.ljust(self.width)}  {seconds:5.0f} s  {text}", soft_wrap=True)
