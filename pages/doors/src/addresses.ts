// The URLs of the doors: one level above the page, wherever the hub is mounted.
import { type About, about, addressOf } from "../../about";

const ids = new Uint8Array(16);

/** `http(s)://host/mount/` of the hub that served this page. */
export const base = new URL("..", location.href);

/** What the server says about itself; the page waits for it before it opens a door. */
export const told: About = await about(base);

export function eventsUrl(): URL {
  return addressOf(told.doors.sse ?? "/events", base);
}

/** The URL that a stream's client posts to. Its id is public; the session proves its identity. */
export function backChannelUrl(sid: string, session: string): URL {
  return new URL(`${eventsUrl().href}/${encodeURIComponent(sid)}?session=${session}`);
}

/** The URL of what all nodes count: any of them answers. */
export function statusUrl(): URL {
  return new URL("api/status?nodes=all", base);
}

export function websocketUrl(): URL {
  const url = addressOf(told.doors.websocket ?? "/ws", base);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  return url;
}

export function socketioPath(): string {
  return addressOf(told.doors.socketio ?? "/socket.io", base).pathname;
}

/** Return a new session key: a bearer secret of 128 random bits. */
export function sessionKey(): string {
  // Not crypto.randomUUID(): browsers hide it on plain http other than localhost.
  return Array.from(crypto.getRandomValues(ids), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
