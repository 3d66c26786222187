// crossband/react: hooks over the client, over socket.io-client, and over any event stream.
// They connect only in effects, so that a server can render the page.
import { useCallback, useEffect, useInsertionEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import type { Client } from "./client.js";
import { connect, type CrossbandError } from "./index.js";
import { follow } from "./follow.js";
import { type Presence, type PresenceSocket, watchPresence } from "./presence.js";
import type { ClientEvents, DefaultEvents, EventName, EventsMap, Listener, Options } from "./types.js";

/** The part of a socket that the hooks need: Crossband's client and socket.io-client's have it. */
export interface SocketLike {
  readonly connected: boolean;
  on(event: any, listener: (...args: any[]) => void): unknown;
  off(event: any, listener: (...args: any[]) => void): unknown;
}

export interface SocketState<S> {
  /** The same on every render, until the URL or an option changes. */
  socket: S;
  isConnected: boolean;
  /** Why there is no connection; null while connected, and before the first failure. */
  error: Error | null;
}

/**
 * Connect a component to a hub, from its mount to its unmount.
 *
 * Options are compared by value: a change makes a new client. A changed function (`token`) takes
 * effect without reconnecting.
 *
 * Given a socket instead, from socket.io-client or `connect`, the hook reports its state and
 * neither connects nor closes it: the code that created it does.
 */
export function useSocket<Incoming extends EventsMap = DefaultEvents, Outgoing extends EventsMap = DefaultEvents>(
  url: string | URL,
  options?: Options,
): SocketState<Client<Incoming, Outgoing>>;
export function useSocket<S extends SocketLike>(socket: S): SocketState<S>;
export function useSocket(target: string | URL | SocketLike, options: Options = {}): SocketState<SocketLike> {
  const newest = useNewest(options);
  const given = typeof target === "object" && "on" in target ? target : undefined;
  const { storage, ...data } = options;
  // Without functions.
  const key = given ? "" : String(target) + JSON.stringify(data);

  const own = useMemo(() => {
    if (given) return undefined;
    const { token } = options;
    const call = (): ReturnType<Extract<Options["token"], Function>> => {
      const { token } = newest.current;
      return typeof token === "function" ? token() : token;
    };
    return connect(String(target), {
      ...options,
      ...(typeof token === "function" && { token: call }),
      autoConnect: false,
    });
    // The key contains all the data.
  }, [key, given]);

  const socket: SocketLike = given ?? own!;
  const subscribe = useCallback(
    (changed: () => void) => {
      const events = ["connect", "disconnect"];
      for (const event of events) socket.on(event, changed);
      return () => {
        for (const event of events) socket.off(event, changed);
      };
    },
    [socket],
  );
  const isConnected = useSyncExternalStore(
    subscribe,
    () => socket.connected,
    () => false,
  );

  // The failure of this socket, not of a previous one.
  const [failure, setFailure] = useState<{ of: SocketLike; error: Error } | null>(null);
  useEffect(() => {
    const failed = (error: Error): void => setFailure({ of: socket, error });
    const connected = (): void => setFailure(null);
    socket.on("connect_error", failed);
    socket.on("connect", connected);
    return () => {
      socket.off("connect_error", failed);
      socket.off("connect", connected);
    };
  }, [socket]);

  useEffect(() => {
    if (!own) return undefined;
    // StrictMode mounts twice: only the second connects.
    const timer = newest.current.autoConnect === false ? undefined : setTimeout(() => own.connect());
    return () => {
      clearTimeout(timer);
      own.close();
    };
  }, [own, newest]);

  return { socket, isConnected, error: failure?.of === socket ? failure.error : null };
}

/**
 * Listen for an event from mount to unmount. The last render's handler is called; a changed one
 * does not subscribe again. Without a socket (null) it waits for one.
 *
 * Many events can arrive between two renders: set state with an updater function,
 * `setLines((lines) => [...lines, line])`, or only the last of them is kept.
 */
export function useEvent<Incoming extends EventsMap, Outgoing extends EventsMap, E extends EventName<ClientEvents>>(
  socket: Client<Incoming, Outgoing> | null | undefined,
  name: E,
  handler: ClientEvents[E],
): void;
export function useEvent<
  Incoming extends EventsMap,
  Outgoing extends EventsMap,
  E extends Exclude<EventName<Incoming>, keyof ClientEvents>,
>(socket: Client<Incoming, Outgoing> | null | undefined, name: E, handler: Listener<Incoming[E]>): void;
export function useEvent<S extends SocketLike>(
  socket: S extends Client<any, any> ? never : S | null | undefined,
  name: string,
  handler: (...args: any[]) => void,
): void;
export function useEvent(
  socket: SocketLike | null | undefined,
  name: string,
  handler: (...args: any[]) => unknown,
): void {
  const newest = useNewest(handler);
  useEffect(() => {
    const listener = (...args: unknown[]): void => void newest.current(...args);
    socket?.on(name, listener);
    return () => void socket?.off(name, listener);
  }, [socket, name, newest]);
}

/**
 * Watch who is in a room, from mount to unmount. The client must be in the room; if it is not yet,
 * this waits. Without a socket or a room (null) nobody is there.
 */
export function usePresence<Info = any>(
  socket: PresenceSocket | null | undefined,
  room: string | null,
): Presence<Info> {
  // Those of this socket and room, not of previous ones.
  const [state, setState] = useState<{ socket: unknown; room: unknown; presence: Presence<Info> } | null>(null);
  useEffect(() => {
    if (!socket || room === null) return undefined;
    return watchPresence<Info>(socket, room, (presence) => setState({ socket, room, presence }));
  }, [socket, room]);
  return state?.socket === socket && state?.room === room ? state!.presence : nobody;
}

const nobody: Presence = { members: [], isReady: false, error: null };

export interface SseMessage<T = any> {
  /** The event's name; "message" if it has none. */
  event: string;
  /** The event's data, parsed. */
  data: T;
  /** The last cursor; "" if the stream has none. */
  lastEventId: string;
}

export interface SseOptions<T = any> {
  /** null: no stream for now. */
  url: string | URL | null;
  /** Names of the events to listen for; all if omitted. */
  events?: readonly string[];
  /** The last render's function is called. Many events may arrive between two renders: see `useEvent`. */
  onMessage?: (message: SseMessage<T>) => void;
  /** Converts the text of `data`. Default: JSON, or the text itself if it is not JSON. */
  parse?: (text: string) => T;
  /** Sent with every request, such as `Authorization`. To another origin they need CORS. */
  headers?: Readonly<Record<string, string>>;
  withCredentials?: boolean;
  /**
   * Milliseconds of silence after which the stream is reopened; default 0, never. Crossband
   * sends a comment every 15 s: 45,000 suits it.
   */
  heartbeat?: number;
  /** As in `connect`; the stream's `retry` replaces the first. Milliseconds. */
  reconnectionDelay?: number;
  reconnectionDelayMax?: number;
  fetch?: typeof fetch;
}

export interface SseState {
  isConnected: boolean;
  /** Why there is no stream; null while connected, and before the first failure. */
  error: CrossbandError | null;
  /** The last cursor, sent when the stream reconnects; "" without one. */
  lastEventId: string;
}

/**
 * Follow an event stream from mount to unmount: Crossband's or any server's. It reconnects after
 * a lost connection and sends the last cursor it received.
 */
export function useSSE<T = any>(options: SseOptions<T>): SseState {
  const { url, events, headers, withCredentials, heartbeat, reconnectionDelay, reconnectionDelayMax } = options;
  const newest = useNewest(options);
  const [state, setState] = useState<SseState>(idle);
  const key = JSON.stringify([url, headers, withCredentials, heartbeat, reconnectionDelay, reconnectionDelayMax]);
  // Not in the key: it only filters here; the server does not know it.
  const wanted = useNewest(events);

  useEffect(() => {
    const { url } = newest.current;
    setState(idle);
    if (url === null) return undefined;
    let stop: (() => void) | undefined;
    // StrictMode mounts twice: only the second connects.
    const timer = setTimeout(() => {
      stop = follow(String(url), newest.current, {
        open: () => setState((state) => ({ ...state, isConnected: true, error: null })),
        lost: (error) => setState((state) => ({ ...state, isConnected: false, error })),
        event: ({ event, data }, lastEventId) => {
          setState((state) => (state.lastEventId === lastEventId ? state : { ...state, lastEventId }));
          if (wanted.current && !wanted.current.includes(event)) return;
          const { parse = parseJson, onMessage } = newest.current;
          onMessage?.({ event, data: parse(data) as T, lastEventId });
        },
      });
    });
    return () => {
      clearTimeout(timer);
      stop?.();
    };
  }, [key, newest, wanted]);

  return state;
}

const idle: SseState = { isConnected: false, error: null, lastEventId: "" };

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Return a ref to the value of the last render, set before any effect runs. */
function useNewest<T>(value: T): { readonly current: T } {
  const reference = useRef(value);
  useInsertionEffect(() => {
    reference.current = value;
  });
  return reference;
}
