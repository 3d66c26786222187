"""The Socket.IO door: Engine.IO sessions over polling and WebSocket, and the packets in them."""
