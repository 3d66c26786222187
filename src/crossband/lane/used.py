"""Names that the lane uses beyond the public API of uvicorn and websockets, by class.

`tests/test_lane.py` fails when an upgrade of either moves one of these names.
"""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import Protocol

# Of uvicorn 0.54 and websockets 17.
USED: Final[dict[type, tuple[str, ...]]] = {
    Protocol: ("current_size", "recv_frame"),
    WebSocketsSansIOProtocol: (
        "conn",
        "transport",
        "frames",
        "handshake_complete",
        "close_sent",
        "app",
        "handle_cont",
        "handle_parser_exception",
    ),
    HttpToolsProtocol: (
        "transport",
        "connections",
        "cycle",
        "flow",
        "pipeline",
        "loop",
        "scope",
        "on_message_begin",
        "on_url",
        "on_header",
        "on_headers_complete",
        "on_body",
        "on_message_complete",
        "ws_protocol_class",
        "handle_websocket_upgrade",
        "_unset_keepalive_if_required",
        "url",
        "headers",
        "server",
        "client",
        "scheme",
        "root_path",
        "asgi_version",
        "app",
        "app_state",
        "tasks",
        "config",
        "server_state",
        "parser",
        "timeout_keep_alive_task",
        "_start_asgi_task",
        "on_response_complete",
        "timeout_keep_alive_handler",
        "pause_writing",
        "resume_writing",
    ),
    RequestResponseCycle: (
        "scope",
        "response_started",
        "response_complete",
        "message_event",
        "disconnected",
        "more_body",
        "access_log",
        "access_logger",
        "keep_alive",
        "chunked_encoding",
        "expected_content_length",
        "waiting_for_100_continue",
        "receive",
        "send",
    ),
    FlowControl: ("write_paused", "resume_reading"),
}
