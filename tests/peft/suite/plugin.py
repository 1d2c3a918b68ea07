"""The pytest plugin under which PEFT's own tests run: with our cases in place of theirs, and what is expected of them.

Its tests take their cases from lists of their module, which are filled anew once the module is imported.
"""

import importlib.util
import sys
import types
from importlib.machinery import ModuleSpec

import pytest

from surm_kernels.peft.config import UpdateConfig
from tests.peft.suite import cases
from tests.peft.suite.expected import FAILURES

_LISTS = {
    "TEST_CASES": cases.single(),
    "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": cases.double(),
    "MIXED_ADAPTER_TEST_CASES": cases.mixed(),
    "ALL_PEFT_CONFIG_CLASSES": cases.CONFIGS,
}
#: What PEFT's tests import of packages that those with our cases do without.
_IMPORTED = {"datasets": "load_dataset", "diffusers": "StableDiffusionPipeline"}


def pytest_configure() -> None:
    for name, imported in _IMPORTED.items():
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            setattr(module, imported, type(imported, (), {}))
            sys.modules[name] = module


def pytest_collectstart(collector: pytest.Collector) -> None:
    if isinstance(collector, pytest.Module):
        for name, rows in _LISTS.items():
            if hasattr(collector.obj, name):
                getattr(collector.obj, name)[:] = rows


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests that have a configuration of ours, and marks those that are expected to fail."""
    ours = {item: None for item in items if _is_ours(item)}
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    items[:] = ours
    for (test, case), reason in FAILURES.items():
        found = [item for item in items if item.originalname == test and case in item.callspec.id]
        if not found:
            raise pytest.UsageError(f"tests/peft/suite/expected.py: there is no test {test} of {case or 'any case'}")
        for item in found:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def _is_ours(item: pytest.Item) -> bool:
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    kinds = (value if isinstance(value, type) else type(value) for value in parameters)
    return any(issubclass(kind, UpdateConfig) for kind in kinds)
