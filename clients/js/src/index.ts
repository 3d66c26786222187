// crossband: the client of the raw WebSocket door and of the event stream door.
import { Client } from "./client.js";
import type { DefaultEvents, EventsMap, Options } from "./types.js";

/**
 * Connect to a hub. `url` is where it is mounted: "https://example.com/realtime", or in a page
 * relative to it.
 *
 * The type parameters are maps of what the server sends and of what the client sends, as those
 * of `socket.io-client`.
 */
export function connect<Incoming extends EventsMap = DefaultEvents, Outgoing extends EventsMap = DefaultEvents>(
  url: string | URL,
  options?: Options,
): Client<Incoming, Outgoing> {
  return new Client(url, options);
}

export { Client };
export { CrossbandError } from "./types.js";
export type {
  Answer,
  Args,
  ClientEvents,
  Connected,
  Data,
  DefaultEvents,
  EventsMap,
  Gap,
  Listener,
  Memory,
  Options,
  State,
  Timers,
  Token,
  TransportName,
} from "./types.js";
