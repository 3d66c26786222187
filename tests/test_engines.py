"""The servers of the tests do what the tests of brokers rely on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import hiredis
import pytest

from tests.engines import Cluster, Engine, Program, Sentinels, shared, wait_for
from tests.front import Front

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


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


def test_sentinels_fail_over(sentinels: Sentinels) -> None:
    first, second = sentinels.primary, sentinels.replica
    first.command("SET", "key", 1)
    first.command("WAIT", 1, 0)
    sentinels.fail_over()
    assert (sentinels.primary, sentinels.replica) == (second, first)
    assert second.command("GET", "key") == "1"
    assert second.command("SET", "key", 2) == "OK"


def test_replica_that_lags_loses_what_was_written(sentinels: Sentinels) -> None:
    first, second = sentinels.primary, sentinels.replica
    first.command("SET", "key", 1)
    first.command("WAIT", 1, 0)
    sentinels.lag()
    assert first.command("SET", "key", 2) == "OK"
    assert sentinels.lose_primary() is first
    assert second.command("GET", "key") == "1"
    first.start()
    wait_for(lambda: first.info("replication")["role"] == "slave")


def test_isolated_primary_takes_writes_until_it_is_found(sentinels: Sentinels) -> None:
    isolated = sentinels.isolate_primary()
    assert sentinels.primary is not isolated
    wait_for(lambda: isolated.info("replication")["role"] == "slave")
    with pytest.raises(hiredis.ReplyError, match="READONLY"):
        isolated.command("SET", "key", 1)


def test_cluster_moves_a_slot_with_its_keys() -> None:
    with Cluster("valkey") as cluster:
        owner = cluster.owner("{tag}")
        owner.command("MSET", "{tag}1", 1, "{tag}2", 2)
        target = cluster.move("{tag}")
        assert cluster.owner("{tag}") is target is not owner
        assert target.command("MGET", "{tag}1", "{tag}2") == ["1", "2"]
        with pytest.raises(hiredis.ReplyError, match=f"MOVED .*:{target.port}"):
            owner.command("GET", "{tag}1")


async def test_link_to_an_engine_goes_dead_and_is_cut() -> None:
    async with Front([shared().url]) as link:
        reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
        link.die()
        writer.write(b"PING\r\n")
        answer = asyncio.ensure_future(reader.readline())
        assert await asyncio.wait([answer], timeout=0.01) == (set(), {answer})
        link.revive()
        assert await answer == b"+PONG\r\n"
        link.cut()
        assert await reader.readline() == b""
        writer.close()
