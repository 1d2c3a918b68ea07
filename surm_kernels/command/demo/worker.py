"""Each run in a fresh process of its own, so that memory and random state of one do not leak into another.

All take their steps in turns, so that whatever else the machine does meets every method alike.
"""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from surm_kernels.command.demo.requirements import DemoError, model_folder, prepare_environment, reviews_file
from surm_kernels.command.demo.training import Emit, Event, RunResult, Settings, encode, run_method


@dataclass(frozen=True)
class Failure:
    """An error of the other process: one line and the whole trace."""

    line: str
    trace: str


def run_here(settings: Settings, emit: Emit) -> RunResult:
    """Loads the data and MiniLM, trains by `settings` in this process and returns the figures."""
    import torch
    from transformers import AutoTokenizer

    from surm_kernels.command.demo.data import read_snippets, split_by_film
    from surm_kernels.command.demo.models import build_classifier, load_encoder

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    snippets = read_snippets(reviews_file())
    train, test = split_by_film(snippets, settings.train_examples, settings.test_examples, settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(), local_files_only=True)
    encoder, hidden_size = load_encoder(model_folder())
    model = build_classifier(encoder, hidden_size, settings.method, settings.seed)
    return run_method(model, encode(train, tokenizer), encode(test, tokenizer), settings, emit)


def _serve(connection: Connection, settings: Settings) -> None:
    """Body of the other process: sends events and waits after each, then sends the result or a failure."""
    prepare_environment()
    warnings.filterwarnings("ignore", category=FutureWarning)

    def emit(event: Event) -> None:
        connection.send(event)
        connection.recv()

    try:
        connection.send(run_here(settings, emit))
    except (KeyboardInterrupt, EOFError):
        pass
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send(Failure(line, traceback.format_exc()))
    finally:
        connection.close()


class Run:
    """`run_here` in a fresh process, which waits after every event; a context that ends with the process."""

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.method = settings.method
        self.result: RunResult | None = None
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, settings), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._connection.close()
        self._process.join(timeout=5 if kind is None else 0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def event(self) -> Event | None:
        """Waits for the next event, None where the run has its result; DemoError where it fails or dies."""
        try:
            message = self._connection.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise DemoError(f"demo: the {self.method} run ended early, exit code {code}", exit_code=1) from None
        if isinstance(message, Failure):
            raise DemoError(f"demo: the {self.method} run failed: {message.line}\n{message.trace}", exit_code=1)
        if isinstance(message, RunResult):
            self.result = message
            return None
        event: Event = message
        return event

    def go_on(self) -> Event | None:
        """Lets the run go on to its next event."""
        self._connection.send(None)
        return self.event()


def take_turns(runs: Sequence[Run], show: Callable[[str, Event], None]) -> None:
    """Lets runs that wait go on in turns, in an order that rotates, to their results; `show` hears of every event."""
    first = 0
    while waiting := [run for run in runs if run.result is None]:
        first = (first + 1) % len(waiting)
        for run in (*waiting[first:], *waiting[:first]):
            if event := run.go_on():
                show(run.method, event)
