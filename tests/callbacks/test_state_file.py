"""Checkpoint files: nested tensors and values, written and read back."""

from __future__ import annotations

from pathlib import Path

import torch

from embedx.callbacks.state_file import read_state, write_state


def test_what_is_nested_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    contents = {
        "a": [1, 2.5, None, True, "text", -float("inf")],
        "b": {0: {"step": torch.tensor(3), "view": shared.T, "same": shared}, "7": [torch.zeros(0), []]},
    }
    write_state(tmp_path / "file", contents)
    back = read_state(tmp_path / "file")
    assert back["a"] == contents["a"] and list(back["b"]) == [0, "7"]
    assert torch.equal(back["b"][0]["view"], shared.T) and back["b"][0]["step"] == 3
    assert back["b"]["7"][0].shape == (0,) and back["b"]["7"][1] == []
