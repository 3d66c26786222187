"""Shows an event stream that replays what was missed, up to the last 100 events.

Run: crossband serve sse_replay:hub --api-keys secret
Try: crossband publish http://127.0.0.1:8000 news '"hello"' --api-key secret
     curl -N http://127.0.0.1:8000/events
     curl -N -H 'Last-Event-ID: <an id from before>' http://127.0.0.1:8000/events
"""

from __future__ import annotations

from crossband import Hub

# A browser's EventSource reconnects with its last id by itself. If that id is older than the last
# 100 events, or than an hour, the client gets a `gap` first, and must load the rest elsewhere.
hub = Hub(history_size=100, history_age=3600)
