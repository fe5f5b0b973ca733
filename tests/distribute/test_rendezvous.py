from __future__ import annotations

import json
import os
import socket
import stat
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from embedx.distribute import rendezvous
from embedx.distribute.rendezvous import (
    Hello,
    Meeting,
    MeetingPlace,
    Reception,
    call_driver,
    check_version,
    find_driver,
    meeting_place,
)
from embedx.errors import ConfigError, MemberError

HELLO = Hello("0.1.0", "node-2", "cuda:0", 4, None)


def ignore(_: str) -> None:
    pass


def test_a_member_finds_the_driver_by_the_file_and_speaks_to_it_with_its_key(tmp_path: Path) -> None:
    out = tmp_path / "store"
    reception, place = Reception(), MeetingPlace(out, "job 1")
    place.announce(reception.meeting)
    (file,) = tmp_path.iterdir()
    assert file == meeting_place(out, "job 1") != meeting_place(out, "job 2")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with call_driver(find_driver(out, "job 1", ignore)) as link:
        link.send(HELLO)
        while not (arrived := reception.arrivals()):
            pass
        ((hello, own),) = arrived
        assert hello == HELLO and reception.arrivals() == []
        for end in (own, link):  # so that the loss of a machine is noticed
            with socket.socket(fileno=os.dup(end.fileno())) as same:
                assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        own.send("welcome")
        assert link.recv() == "welcome"
        own.close()
    reception.close()
    place.leave_word(3)
    assert find_driver(out, "job 1", ignore).ended == 3


def test_strangers_are_not_let_in_and_keep_nobody_out() -> None:
    reception = Reception()
    meeting = reception.meeting
    silent = [socket.create_connection(("127.0.0.1", meeting.port)) for _ in range(3)]
    with pytest.raises((AuthenticationError, EOFError, OSError)):
        Client(("127.0.0.1", meeting.port), authkey=b"another key")
    with call_driver(meeting) as link:
        link.send({"not": "a hello"})
    with call_driver(meeting) as link:
        link.send(HELLO)
        while not (arrived := reception.arrivals()):
            pass
        assert [hello for hello, _ in arrived] == [HELLO]
    for connection in silent:
        connection.close()
    reception.close()


def test_the_files_of_earlier_jobs_go(tmp_path: Path) -> None:
    meeting = Meeting("node-1", [], 1, "")
    for job in ("one", "two"):
        MeetingPlace(tmp_path / "store", job).announce(meeting)
    assert list(tmp_path.iterdir()) == [meeting_place(tmp_path / "store", "two")]


def test_a_driver_that_never_comes_and_one_that_can_t_be_reached_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(MemberError, match=r"no driver \(rank 0\) of this job has come to"):
        find_driver(tmp_path / "store", "job", ignore)
    reception = Reception()
    meeting = reception.meeting
    reception.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MemberError, match=r"can't reach the driver on .* port \d+\); let the machines"):
        call_driver(meeting._replace(port=port))


def test_half_a_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_PATIENCE_SECONDS", 0.1)
    place = meeting_place(tmp_path / "store", "job")
    for text in ("", "{", json.dumps({"host": "a"}), "[]"):
        place.write_text(text)
        with pytest.raises(MemberError):
            find_driver(tmp_path / "store", "job", ignore)


def test_another_version_is_refused() -> None:
    check_version(HELLO, "0.1.0")
    with pytest.raises(ConfigError, match=r"the member on node-2 runs embedx 0\.1\.0, and the driver 0\.2\.0"):
        check_version(HELLO, "0.2.0")
