"""What went wrong in other servers of this field, and the tests that show it does not here.

The rows are those of docs/explanation/security.md.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from crossband import Hub
from crossband.limits import Limits
from tests.clients import PythonSocketIOClient, WebSocketClient
from tests.clients.raw import TEXT, RawWebSocket, dialled, engine_url, frame, http, upgrade
from tests.conftest import Serve
from tests.test_hostile import BODIES, ENVELOPES, FRAMES, PACKETS, POSTS, REQUESTS

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src/crossband"
PAGE = TESTS.parent / "docs/explanation/security.md"

# By row: tests as `file::name`, and attacks of tests/test_hostile.py by their name alone.
SHOWN: dict[str, tuple[str, ...]] = {
    "One packet ends the process": (
        "test_hostile.py::test_attack_is_answered_and_harms_nobody_else",
        "test_hostile.py::test_random_bytes_harm_nobody",
        "transports/test_websocket_door.py::test_odd_handshake_headers_end_no_process",
        "transports/test_websocket_door.py::test_two_thousand_headers_end_no_process",
        "a number for a name",
        "an event too deep",
        "no such attachment",
        "WebSocket: 2,000 headers",
    ),
    "Attachments announced and never sent": (
        "protocol/test_socketio.py::test_attachments_announced_and_never_sent_hold_only_their_packet",
        "test_leaks.py::test_nothing_is_left_of_odd_ends",
        "eleven attachments",
        "attachments over the limit",
        "an attachment used twice",
        "attachments before CONNECT",
        "binary before CONNECT",
    ),
    "Data nested until a parser runs out of stack": (
        "test_hostile.py::test_what_gets_in_at_one_door_gets_out_at_all",
        "hub/test_namespace.py::test_nested_as_deeply_as_may_be_is_sent",
        "hub/test_catchup.py::test_event_one_door_cannot_carry_is_a_gap_there_and_reaches_the_others",
        "API: 65 deep",
        "65 deep",
        "65 deep, with an attachment",
        "auth too deep",
    ),
    "Decompression bombs": (
        "transports/test_websocket_door.py::test_decompression_bomb_is_stopped_while_it_inflates",
    ),
    "Limits applied after buffering": (
        "transports/test_sse_door.py::test_post_over_the_limit_is_refused_while_it_streams",
        "protocol/test_websocket.py::test_too_large_is_known_from_the_header",
        "API: too large, in chunks",
        "WebSocket: 5 MB announced",
    ),
    "A kilobyte that inflates to a megabyte, for everybody in the room": (
        "test_limits.py::test_websocket_bytes_too_many_are_answered",
        "test_limits.py::test_socketio_bytes_too_many_are_answered",
        "test_limits.py::test_flood_of_bytes_is_closed_with_1008",
    ),
    "Fragment floods": ("test_hostile.py::test_fragments_without_end_are_cut",),
    "Unbounded packets in one polling body": (
        "protocol/test_engineio.py::test_a_megabyte_of_separators_is_refused_before_it_is_split",
        "a megabyte of separators",
        "129 packets, the last of them bad",
    ),
    "Lengths of 2^63, truncated frames": (
        "WebSocket: 2^63 bytes announced",
        "Socket.IO: 2^62 bytes announced",
        "test_hostile.py::test_broken_frame_of_a_client_that_vanished_is_no_error",
    ),
    "Heartbeats before authentication": (
        "test_auth_doors.py::test_one_heartbeat_before_auth",
    ),
    "Slow heads, slow bodies, responses that are never read": (
        "test_hostile.py::test_head_that_takes_too_long_is_cut",
        "test_hostile.py::test_head_without_end_is_cut",
        "test_hostile.py::test_body_that_never_ends_is_cut",
        "test_hostile.py::test_response_that_is_never_read_is_cut",
    ),
    "Endless requests on one connection, bytes that are not a request": (
        "test_hostile.py::test_requests_that_wait_for_answers_are_bounded",
        "test_hostile.py::test_bytes_that_are_no_request_keep_no_connection_open",
    ),
    "WebSockets that take over a polling session": (
        "test_hostile.py::test_only_one_websocket_takes_a_session_over",
        "test_hostile.py::test_upgrade_hears_nothing_but_its_two_packets",
    ),
    "One client's thousand messages delay everybody else's": (
        "test_flood.py::test_honest_clients_lose_nothing_beside_hostile_ones",
    ),
    "WebSockets of another site": (
        "Engine.IO: another site",
        "Engine.IO: another site's WebSocket",
        "SSE: another site",
        "WebSocket: another site",
        "WebSocket: an opaque origin",
    ),
    "Pages whose name resolves to a local server (DNS rebinding)": (
        "test_origins.py::test_every_path_is_for_the_allowed_hosts",
        "test_origins.py::test_page_of_a_name_that_leads_here_is_refused",
        "demo/test_pages.py::test_every_path_is_for_the_allowed_hosts",
        "cli/test_commands.py::test_open_hub_on_loopback_is_for_this_machine",
    ),
    "Authentication on one transport only": (
        "test_auth_doors.py::test_only_good_tokens_come_in",
        "test_auth_doors.py::test_stream_and_its_way_back_are_checked",
        "SSE: a guarded namespace",
        "WebSocket: a guarded namespace",
        "a guarded namespace",
    ),
    "Guards that never run": (
        "handlers/test_callables.py::test_what_would_run_nothing_is_refused_at_registration",
        "handlers/test_callables.py::test_function_of_other_arguments_is_refused_at_registration",
        "handlers/test_callables.py::test_middleware_that_meant_to_refuse_lets_nobody_in",
        "handlers/test_callables.py::test_authorize_allows_by_true_alone",
    ),
    "Tokens that choose how they are verified": (
        "test_auth.py::test_headers_that_are_refused",
        "test_auth.py::test_unsigned_token_is_refused",
        "test_auth.py::test_public_key_as_a_secret_is_refused",
        "test_auth.py::test_claims_that_are_refused",
        "test_auth.py::test_key_that_does_not_fit_is_refused_at_construction",
        "test_auth.py::test_public_key_of_another_form_is_no_secret",
    ),
    "Key fetches triggered by a token": (
        "test_auth.py::test_key_inside_the_token_is_not_looked_at",
        "test_auth.py::test_unknown_keys_cause_one_fetch",
        "test_auth.py::test_keys_are_taken_as_they_are_or_not_at_all",
    ),
    "Keys joined into one string": (
        "broker/test_sessions.py::test_saved_session_is_found_and_left_where_it_is",
        "SSE: a namespace with NUL",
        "WebSocket: a key with NUL",
        "a type with NUL",
    ),
    "Code in data": ("test_security.py::test_no_format_that_runs_code_is_imported",),
    "Patterns in names": ("test_security.py::test_room_named_as_a_pattern_is_one_room",),
    "Fields smuggled into an event stream": (
        "transports/test_sse_door.py::test_no_published_string_can_start_a_field",
        "API: an event with NUL",
        "API: a room with a line break",
    ),
    "Headers smuggled into a response, requests into a body": (
        "test_security.py::test_line_break_in_a_query_starts_no_header",
        "a length and chunks",
        "two lengths",
        "a NUL in a header",
    ),
    "Tokens in logs, tokens that outlive themselves": (
        "test_auth_doors.py::test_tokens_are_in_no_log",
        "test_auth.py::test_secret_of_any_form_is_redacted_by_its_name",
        "test_auth_doors.py::test_connection_ends_with_its_token_and_resumes_with_a_new_one",
        "test_server.py::test_credentials_are_not_logged",
    ),
    "Secrets compared byte by byte": (
        "test_security.py::test_secrets_are_compared_in_constant_time",
        "API: a wrong key",
        "SSE: post to somebody else, a guess",
    ),
    "Everybody's history pushed out by one client": (
        "broker/test_memory.py::test_namespaces_that_were_only_named_take_no_place",
    ),
    "Unbounded growth": (
        "broker/test_conformance.py::test_history_is_bounded_by_bytes",
        "hub/test_namespace.py::test_room_limit_is_told",
        "test_security.py::test_namespaces_of_one_connection_are_bounded",
        "hub/test_acks.py::test_acks_are_bounded_and_fail_when_the_client_leaves",
        "test_connection.py::test_full_outbox_closes_the_connection",
        "hub/test_socket.py::test_inbox_stays_bounded_while_an_answer_is_owed",
        "test_limits.py::test_inbox_is_bounded_in_bytes",
        "auth over 16 KiB",
        "SSE: too many rooms",
    ),
    "Broken connections kept open": (
        "test_hostile.py::test_attack_is_answered_and_harms_nobody_else",
    ),
}  # fmt: skip


def test_everything_listed_is_tested() -> None:
    tables = (REQUESTS, FRAMES, ENVELOPES, PACKETS, BODIES, POSTS)
    known = {attack.name for table in tables for attack in table}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                known.add(f"{path.relative_to(TESTS).as_posix()}::{node.name}")
    missing = {name for names in SHOWN.values() for name in names} - known
    assert not missing


def test_everything_on_the_page_is_listed() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows[1:] == list(SHOWN)


@functools.cache
def sources() -> list[tuple[Path, ast.AST]]:
    return [
        (path, node)
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def test_no_format_that_runs_code_is_imported() -> None:
    imported = {
        name.split(".")[0]
        for _, node in sources()
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"}


_SECRET = re.compile(r"(^|_)(key|secret|token|password|signature|session)$")


def test_secrets_are_compared_in_constant_time() -> None:
    found = []
    for path, node in sources():
        if not isinstance(node, ast.Compare):
            continue
        # Commands and clients run on the side of who knows the secret.
        if path.relative_to(SOURCE).parts[0] in ("cli", "client"):
            continue
        sides = [node.left, *node.comparators]
        if any(isinstance(side, ast.Constant) for side in sides) or not any(
            isinstance(sign, ast.Eq | ast.NotEq) for sign in node.ops
        ):
            continue
        names = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
        if any(_SECRET.search(name) for name in names):
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert not found


@pytest.mark.parametrize("room", ["*", "?ews", "[a-z]*", "#", "news*", ".*", "n%"])
async def test_room_named_as_a_pattern_is_one_room(room: str, serve: Serve) -> None:
    hub = Hub()

    @hub.on("enter")
    async def enter(socket: Any, name: str) -> None:
        await socket.join(name)

    server = await serve(hub)
    for client in (WebSocketClient(), PythonSocketIOClient()):
        await client.connect(server.url)
        await client.call("enter", room)
        await hub.to("news").emit("heard", "another room's")
        await hub.to(room).emit("heard", "mine")
        assert (await client.next_event("heard")).data == "mine"
        await client.close()


@pytest.mark.parametrize("value", ["%0d%0aX-Evil:%201", "%0aX-Evil:%201", "%0dX-Evil:%201"])
async def test_line_break_in_a_query_starts_no_header(value: str, serve: Serve) -> None:
    server = await serve(Hub(cors_origins=["*"]))
    targets = [
        f"/events?session={'k' * 20}{value}",
        f"/events/nope{value}",
        f"/events?room=a{value}",
        f"/socket.io/?EIO=4&transport=polling&sid={value}",
        f"/api/nope{value}",
        f"/nope{value}",
    ]
    requests = [http(target) for target in targets]
    requests += [upgrade(f"/ws/nope{value}"), upgrade(f"/ws?room=a{value}")]
    requests += [upgrade("/ws/nope", f"Sec-WebSocket-Protocol: a{value}")]
    requests += [http("/events/nope", f"Origin: https://a.example{value}")]
    for request in requests:
        async with dialled(server.url) as tcp:
            tcp.send(request)
            status, headers, _ = await tcp.answer()
            assert status >= 400, request
            assert "x-evil" not in headers, request


async def test_namespaces_of_one_connection_are_bounded(serve: Serve) -> None:
    hub = Hub(limits=Limits(namespaces=2))
    hub.of(re.compile(r"/game-\d"))
    server = await serve(hub)
    raw = await RawWebSocket.open(engine_url(server.url))
    await raw.receive()
    for number in range(3):
        raw.send(frame(TEXT, b"40/game-%d," % number))
    answers = [(await raw.receive())[1].decode() for _ in range(3)]
    (refused,) = (answer for answer in answers if answer.startswith("44/game-2,"))
    assert json.loads(refused.removeprefix("44/game-2,")) == {
        "message": "Too many namespaces",
        "data": {"code": "too_many_namespaces", "error": "Too many namespaces"},
    }
    raw.send(frame(TEXT, b"41/game-0,"))
    raw.send(frame(TEXT, b"40/game-3,"))
    assert (await raw.receive())[1].startswith(b"40/game-3,")
    await raw.close()
