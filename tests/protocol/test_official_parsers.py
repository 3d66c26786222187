"""Engine.IO and Socket.IO, judged by the official JavaScript parsers."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossband.names import RESERVED
from crossband.protocol import engineio, socketio
from crossband.protocol import payload as payloads
from tests.clients.node import node_executable
from tests.protocol.strategies import binary_values, ids, names, namespaces

pytestmark = pytest.mark.node

SCRIPT = Path(__file__).with_name("official_parsers.mjs")

events = st.tuples(
    st.just("event"), namespaces, names, st.lists(binary_values, max_size=3), st.none() | ids
)
acks = st.tuples(st.just("ack"), namespaces, st.just(""), st.lists(binary_values, max_size=3), ids)


def is_readable(value: Any) -> bool:
    """Tell whether the parsers in JavaScript can hold it: they assign keys one by one."""
    if isinstance(value, dict):
        return "__proto__" not in value and all(map(is_readable, value.values()))
    return not isinstance(value, list) or all(map(is_readable, value))


def visible(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"$binary": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: visible(item) for key, item in value.items()}
    return list(map(visible, value)) if isinstance(value, list) else value


def judge(bodies: list[str]) -> list[dict[str, Any]]:
    answer = subprocess.run(
        [node_executable(), SCRIPT],
        input=json.dumps(bodies).encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    judged: list[dict[str, Any]] = from_javascript(answer.stdout)
    return judged


def from_javascript(text: bytes) -> Any:
    # JavaScript writes the shortest digits that give the same double, also for whole numbers.
    return json.loads(
        text, parse_int=lambda digits: int(digits) if len(digits) < 16 else float(digits)
    )


# One process judges many packets.
@settings(max_examples=3, derandomize=True)
@given(
    st.lists(
        # The hub lets no reserved name through; the official parser refuses them.
        (events | acks).filter(lambda packet: packet[2] not in RESERVED and is_readable(packet[3])),
        min_size=20,
        max_size=40,
    )
)
def test_official_parsers_read_what_is_encoded_and_are_read(
    sent: list[tuple[str, str, str, list[Any], int]],
) -> None:
    bodies = []
    for kind, namespace, name, arguments, id in sent:
        payload = payloads.encode(arguments)
        if kind == "event":
            text = socketio.encode_event(namespace, name, payload, id=id)
        else:
            text = socketio.encode_ack(namespace, id, payload)
        packets: list[str | bytes] = [text, *payload.attachments]
        bodies.append(
            engineio.encode_payload(
                engineio.encode_packet(engineio.Packet(engineio.PacketType.MESSAGE, data))
                for data in packets
            )
        )
    for (kind, namespace, name, arguments, id), judged in zip(sent, judge(bodies), strict=True):
        [seen] = judged["packets"]
        assert (seen["nsp"], seen.get("id")) == (namespace, id)
        expected = [name, *arguments] if kind == "event" else arguments
        assert seen["data"] == visible(expected)

        decoder = socketio.Decoder(max_attachments=100, max_bytes=1_000_000)
        for message in engineio.decode_payload(judged["body"], max_packets=100):
            packet = decoder.feed(message.data)
        assert packet is not None
        assert (packet.namespace, packet.id) == (namespace, id)
        values = [from_javascript(bytes(raw)) for raw in socketio.split_ack(packet)]
        assert payloads.reconstruct(values, packet.attachments) == expected
