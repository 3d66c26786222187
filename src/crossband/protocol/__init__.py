"""The wire formats: Engine.IO 4, Socket.IO 5, the JSON envelope and Server-Sent Events.

Pure codecs: no asyncio, no clock, no logging, no state beyond one half-received packet.
"""
