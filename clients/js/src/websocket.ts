// One connection over the raw WebSocket door.
import { CrossbandError, type Link, type LinkListener, type Message } from "./types.js";

const TOKEN_EXPIRED = 4401;
// Close codes after which the client stays away: docs/reference/close-codes.md.
const FINAL_CODES = /^(100[0237-9]|400[0-7]|44\d\d)$/;

// The id is 2^53 - 1. The server does not wait for this acknowledgement, so it answers `unknown_ack`
// without running a handler, which shows that it is alive. Browsers hide pings from scripts.
const PROBE = '{"type":"ack","id":9007199254740991}';

export function openWebSocket(
  WebSocketClass: new (url: string, protocols?: string[]) => WebSocket,
  url: URL,
  token: string | null | undefined,
  listener: LinkListener,
): Link {
  url.protocol = url.protocol.replace("http", "ws");
  // As a subprotocol, which proxies do not log; they log URLs. A JWT consists of these characters;
  // some others are not allowed in a subprotocol (RFC 6455 §4.1).
  const header = token && /^[\w.~+-]+$/.test(token);
  if (token && !header) url.searchParams.set("token", token);
  const socket = new WebSocketClass(url.href, header ? ["crossband", `bearer.${token}`] : []);
  // A socket may still deliver messages until its close is answered.
  let over = false;
  socket.onmessage = ({ data }: MessageEvent<string>) => {
    if (over) return;
    listener.alive();
    const message = JSON.parse(data) as Message;
    if (message.type !== "error" || message["code"] !== "unknown_ack") listener.message(message);
  };
  socket.onclose = ({ code, reason }) => {
    if (over) return;
    over = true;
    const text = reason || (code === 1006 ? "The connection was lost" : `Code ${code}`);
    listener.end({
      error: new CrossbandError(code === TOKEN_EXPIRED ? "unauthorized" : "closed", text, { closeCode: code }),
      final: FINAL_CODES.test(String(code)),
    });
  };
  return {
    send(text) {
      socket.send(text);
      return true;
    },
    probe() {
      socket.send(PROBE);
    },
    close() {
      over = true;
      socket.close();
    },
  };
}
