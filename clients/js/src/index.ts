// crossband: the client of the raw WebSocket door and of the event stream door.
import { Client } from "./client.js";
import type { DefaultEvents, EventsMap, Options } from "./types.js";

/**
 * Connect to a hub. `url` is where it is mounted, such as "https://example.com/realtime"; in a
 * page it may be relative.
 *
 * The type parameters are the event maps of the server and of the client, as in
 * `socket.io-client`.
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
