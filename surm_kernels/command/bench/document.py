"""A session as a JSON document, all samples included, and back."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from surm_kernels.command import machine
from surm_kernels.command.accuracy import Deviation
from surm_kernels.command.bench import cases
from surm_kernels.command.bench.case import OURS, Point
from surm_kernels.command.bench.measure import Measurement
from surm_kernels.command.bench.records import MemoryRecord, Record, verdicts
from surm_kernels.command.bench.report import Session


def document(session: Session) -> dict[str, Any]:
    """The session for JSON."""
    return {
        "date": session.date,
        "command": session.command,
        "quick": session.quick,
        "facts": session.facts,
        "machine": {
            "processor": machine.processor(),
            "cores": machine.cores(),
            "instruction_sets": list(machine.instruction_sets()),
            "gpus": list(machine.gpus()),
        },
        "versions": machine.versions("peft", "transformers"),
        "claims": [verdict.to_json() for verdict in verdicts(session.records, session.memory)],
        "measurements": [record.to_json() for record in session.records],
        "memory": [record.to_json() for record in session.memory],
        "notes": session.notes,
    }


def session_of(document: Mapping[str, Any]) -> Session:
    """The session of a document; ValueError, KeyError, TypeError or AttributeError where it is something else.

    What was measured of cases that there are no longer is left out.
    """
    known = {case.name: case for case in cases.CASES}
    memory = {case.name: case for case in cases.MEMORY_CASES}
    return Session(
        document["command"],
        document["quick"],
        [
            Record(known[one["case"]], *_place(one), _measurement(one["contenders"]))
            for one in document["measurements"]
            if one["case"] in known
        ],
        [
            MemoryRecord(memory[one["case"]], one["method"], *_place(one), one["extra_megabytes"])
            for one in document["memory"]
            if one["case"] in memory
        ],
        document["notes"],
        document["facts"],
        document["date"],
    )


def _place(one: Mapping[str, Any]) -> tuple[Point, torch.dtype, int]:
    point = Point(one["in_features"], one["out_features"], one["tokens"])
    return point, getattr(torch, one["dtype"]), one["threads"]


def _measurement(contenders: Mapping[str, Any]) -> Measurement:
    deviations = {
        name: Deviation(math.inf if found["error"] is None else found["error"], found["error_limit"])
        for name, found in contenders.items()
        if found["error_limit"] is not None
    }
    samples = {name: found["seconds"] for name, found in contenders.items() if found["seconds"]}
    return Measurement(OURS, deviations, samples)
