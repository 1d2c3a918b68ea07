"""Each run in a fresh process of its own, so that memory and random state of one do not leak into the next."""

from __future__ import annotations

import multiprocessing
import traceback
import warnings
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
    """Body of the other process: sends events, then the result or a failure."""
    prepare_environment()
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        connection.send(run_here(settings, connection.send))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        connection.send(Failure(line, traceback.format_exc()))
    finally:
        connection.close()


def run_in_process(settings: Settings, emit: Emit) -> RunResult:
    """`run_here` in a fresh process; raises DemoError, with exit code 1, where that one fails or dies."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sender, settings), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            message = receiver.recv()
            if isinstance(message, RunResult):
                return message
            if isinstance(message, Failure):
                raise DemoError(f"demo: the {settings.method} run failed: {message.line}\n{message.trace}", exit_code=1)
            if isinstance(message, Event):
                emit(message)
    except EOFError:
        process.join()
        code = process.exitcode
        raise DemoError(f"demo: the {settings.method} run ended early, exit code {code}", exit_code=1) from None
    finally:
        receiver.close()
        process.join(timeout=5)
        if process.is_alive():
            process.kill()
            process.join()
