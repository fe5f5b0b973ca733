"""No telemetry: a run asks no other machine for anything that it was not told to."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from embedx import sample
from tests import runs

SITECUSTOMIZE = """
import os, sys

def audit(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"):
        told = f"{event} {arguments}"
    elif event in ("socket.connect", "socket.bind", "socket.sendto") and arguments[0].family.name.startswith("AF_INET"):
        told = f"{event} {arguments[1:]}"
    elif event == "socket.__new__" and arguments[1] not in (1, -1):  # AF_UNIX, or that of a descriptor that is there
        told = f"{event} {arguments[1:]}"
    else:
        return
    with open(os.environ["AUDIT"] + "/calls", "a") as file:
        file.write(told + "\\n")

sys.addaudithook(audit)
open(f"{os.environ['AUDIT']}/process-{os.getpid()}", "w").close()
"""


@pytest.mark.soak
def test_a_run_makes_no_connection_and_asks_for_no_name(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITECUSTOMIZE)
    (tmp_path / "images").mkdir()
    for image in sorted((sample.IMAGES / "val/star").iterdir())[:3]:
        shutil.copy(image, tmp_path / "images")
    path = f"{tmp_path / 'site'}:{Path(sample.__file__).parents[2]}"
    environment = {"PYTHONPATH": path, "AUDIT": str(tmp_path)}
    done = runs.run(
        *("extract", "--backbone", "shufflenet_v2_x0_5", "--weights", "sample", "--workers", "1"),
        *("--data", tmp_path / "images", "--out", tmp_path / "out", "--device", "cpu"),
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("process-*"))) >= 2  # main, and the server that its other processes fork from
    assert not (tmp_path / "calls").exists(), (tmp_path / "calls").read_text()


def test_a_connection_would_be_seen(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))"
    environment = {"PYTHONPATH": str(tmp_path), "AUDIT": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "socket.connect (('127.0.0.1', 9),)" in (tmp_path / "calls").read_text()
