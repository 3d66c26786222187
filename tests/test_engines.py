"""The servers of the tests do what the tests of brokers rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import hiredis
import pytest

from tests.engines import Engine, Program, shared, wait_for

PROGRAMS: list[Program] = ["redis", "valkey"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_engine_answers_and_is_shared(program: Program) -> None:
    engine = shared(program)
    assert shared(program) is engine
    assert engine.command("SET", "test_engines", b"\xff1") == "OK"
    assert engine.command("GET", "test_engines") == "\udcff1"
    assert (engine.info("server").get("server_name") == "valkey") is (program == "valkey")
    with pytest.raises(hiredis.ReplyError, match="wrong number of arguments"):
        engine.command("GET")


@pytest.mark.parametrize("program", PROGRAMS)
def test_killed_engine_comes_back_with_its_data_or_empty(program: Program) -> None:
    with Engine(program, save=True) as engine:
        url = engine.url
        engine.command("SET", "key", 1)
        engine.kill()
        with pytest.raises(OSError):
            engine.command("PING")
        engine.start()
        assert engine.command("GET", "key") == "1"
        engine.kill()
        engine.start(empty=True)
        assert engine.command("GET", "key") is None
        assert engine.url == url


def test_stopped_engine_answers_once_it_resumes() -> None:
    with Engine() as engine:
        engine.stop()
        with engine._connect() as connection:
            connection.sendall(b"PING\r\n")
            connection.settimeout(0.01)
            with pytest.raises(TimeoutError):
                connection.recv(10)
            engine.resume()
            connection.settimeout(30)
            assert connection.recv(10) == b"+PONG\r\n"


def says(engine: Engine, sent: bytes, lines: int) -> bytes:
    """Return the first lines that an engine answers on a new connection."""
    with engine._connect() as connection, connection.makefile("rb") as file:
        connection.sendall(sent)
        return b"".join(file.readline() for _ in range(lines))


def test_engine_with_tls_and_a_user() -> None:
    with Engine(tls=True, user="alice", password="secret", acl="~a:* +get +auth") as engine:
        assert engine.url == f"rediss://alice:secret@localhost:{engine.port}"
        assert says(engine, b"AUTH alice secret\r\nGET a:1\r\n", 2) == b"+OK\r\n$-1\r\n"
        assert says(engine, b"GET a:1\r\n", 1) == b"-NOAUTH Authentication required.\r\n"
        assert says(engine, b"AUTH alice wrong\r\n", 1).startswith(b"-WRONGPASS")
        assert b"NOPERM" in says(engine, b"AUTH alice secret\r\nGET b:1\r\n", 2)
        # The tests themselves may do everything.
        assert engine.command("SET", "b:1", "1") == "OK"


def test_engine_with_a_password() -> None:
    with Engine(password="secret") as engine:
        assert engine.url == f"redis://:secret@127.0.0.1:{engine.port}"
        assert says(engine, b"PING\r\nAUTH secret\r\n", 2) == (
            b"-NOAUTH Authentication required.\r\n+OK\r\n"
        )


def test_engine_ends_with_a_test_process_that_is_killed() -> None:
    program = "from tests.engines import shared; print(shared().pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        wait_for(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
