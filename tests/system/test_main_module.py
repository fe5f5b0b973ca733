"""Children know nothing of the caller's `__main__`; programs that rely on it stand in tests/api/test_programs.py."""

from __future__ import annotations

import pickle
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from embedx.errors import ConfigError
from embedx.system.main_module import main_left_out
from embedx.system.processes import CHILDREN


def work() -> None:
    raise AssertionError("never called")


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module `__main__`, with a function of its own."""
    module = sys.modules["__main__"]
    monkeypatch.setattr(work, "__module__", "__main__")
    monkeypatch.setattr(module, "work", work, raising=False)
    return module


def test_what_the_caller_s_main_defines_is_refused_by_name(main: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"work is defined in __main__.* define it in a module of its own"):
        CHILDREN.Process(target=work).start()
    assert sys.modules["__main__"] is main


def test_an_error_that_has_another_cause_stays_as_it_is(main: ModuleType) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        CHILDREN.Process(target=lambda: None).start()
    assert sys.modules["__main__"] is main


def test_other_threads_see_the_real_module_meanwhile(main: ModuleType) -> None:
    found: list[Any] = []

    def look() -> None:
        found.append(pickle.loads(pickle.dumps(work)))

    with main_left_out():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(work)
    assert found == [work] == [pickle.loads(pickle.dumps(work))]
