// Types: event maps, options, and the messages of the envelope.

// As in Socket.IO, a map has a function for each event: its parameters are the event's arguments,
// and a last parameter that is a function is the acknowledgement. The same maps fit `socket.io-client`.
export type EventsMap = { [event: string]: any };
export type DefaultEvents = { [event: string]: (...args: any[]) => void };

type AnyFunction = (...args: any[]) => any;
type ParametersOf<F> = F extends (...args: infer A) => any ? A : never;
type WithoutAck<A extends unknown[]> = A extends [...infer Rest, AnyFunction] ? Rest : A;
type AckOf<A extends unknown[]> = A extends [...unknown[], infer Last extends AnyFunction] ? Last : undefined;
/** How these arguments arrive: one value unchanged, several as an array, none as null. */
type Received<A extends unknown[]> = number extends A["length"]
  ? any
  : A extends []
    ? null
    : A extends [infer One]
      ? One
      : A extends [One?: infer One]
        ? One | null
        : A;

export type EventName<Map extends EventsMap> = keyof Map & string;
/** The payload of an event as its listener gets it. */
export type Data<F> = Received<WithoutAck<ParametersOf<F>>>;
/** The arguments of an event as `emit` takes them. */
export type Args<F> = WithoutAck<ParametersOf<F>>;
/** The other side's answer, from the event's acknowledgement function. */
export type Answer<F> = AckOf<ParametersOf<F>> extends (...args: infer A) => any ? Received<A> : any;
type Reply<F> = AckOf<ParametersOf<F>> extends (...args: infer A) => any
  ? (...answer: A) => void
  : (answer?: unknown) => void;
/** `ack` answers a server that asked for an acknowledgement; otherwise it does nothing. */
export type Listener<F> = (data: Data<F>, ack: Reply<F>) => unknown;

export type State = "connecting" | "connected" | "reconnecting" | "closed";
export type TransportName = "websocket" | "sse";

export interface Connected {
  /** The client's public id at the server. */
  id: string;
  transport: TransportName;
  /** Whether the events missed since the last connection follow, in order. */
  recovered: boolean;
}

export interface Gap {
  /** `unknown`, `expired`, `session`, `timeout`, `unencodable` or `lost`; see the how-to page on resuming. */
  reason: string;
  /** Where the client continues from. */
  offset: string | null;
}

/** The client's own events. Only `onAny` listeners get the server's events with these names. */
export interface ClientEvents {
  connect: (connected: Connected) => void;
  /** A connection ended. `reason` is the text of the close code, or the cause of the failure. */
  disconnect: (reason: string) => void;
  /** An attempt to connect failed. If `state` is then "closed", it was the last. */
  connect_error: (error: CrossbandError) => void;
  /** An event for which no acknowledgement was requested failed at the server. */
  error: (error: CrossbandError) => void;
  /** Events were lost: reload the data you show. */
  gap: (gap: Gap) => void;
  /** The server is about to stop. The client reconnects by itself. */
  shutdown: (message: string) => void;
  state: (state: State) => void;
}

/** An error, with the server's `code` if it has one. */
export class CrossbandError extends Error {
  override readonly name = "CrossbandError";
  constructor(
    readonly code: string,
    message: string,
    /** Further fields of the server's error, such as `path` and `reason`; `status` for HTTP responses. */
    readonly details: Readonly<Record<string, unknown>> = {},
  ) {
    super(message);
  }
}

export type Token = string | (() => string | null | undefined | Promise<string | null | undefined>);

/** The part of `Storage` that the client needs. */
export type Memory = Pick<Storage, "getItem" | "setItem" | "removeItem">;

export interface Timers {
  setTimeout(callback: () => void, ms: number): any;
  clearTimeout(timer: any): void;
}

/** Times are in milliseconds. */
export interface Options {
  /** Default "/". */
  namespace?: string;
  /** Rooms to join on connecting. The server must allow it. */
  rooms?: readonly string[];
  /** In order of preference; default WebSocket, then the event stream. */
  transports?: readonly TransportName[];
  /** A token, or a function that returns one: called before every attempt, and before the token expires. */
  token?: Token;
  /** Further fields of the URL, for `socket.handshake.query`. */
  query?: Readonly<Record<string, string>>;
  /** Connect at once. Default true. */
  autoConnect?: boolean;
  /** Reconnect after a lost connection. Default true. */
  reconnection?: boolean;
  /** Give up after this many failed attempts in a row. Default: never. */
  reconnectionAttempts?: number;
  /** The longest wait before the first attempt; it doubles with each attempt. Default 500. */
  reconnectionDelay?: number;
  /** The upper bound of that wait. Default 30,000. */
  reconnectionDelayMax?: number;
  /** How long an attempt may take until the welcome. Default 10,000. */
  connectTimeout?: number;
  /** How long `emitWithAck` waits. Default 10,000. */
  ackTimeout?: number;
  /** Probe the connection after this much silence, and give it up 10 s later. Default 25,000; 0: never. */
  heartbeat?: number;
  /** Events buffered while there is no connection. Default 100. */
  bufferSize?: number;
  /** Resume after a reload of the page: store session and cursor in `storage`, under this key. */
  persist?: boolean | string;
  /** Default `localStorage`. */
  storage?: Memory;
  /** Send cookies to another origin. For the event stream; WebSockets always send them. */
  withCredentials?: boolean;
  /** Paths of the doors below the URL, if the server has others. */
  paths?: { websocket?: string; events?: string };
  /** Default: the platform's. */
  WebSocket?: new (url: string, protocols?: string[]) => WebSocket;
  fetch?: typeof fetch;
  timers?: Timers;
  random?: () => number;
}

/** One message of the envelope, in either direction. */
export interface Message {
  type: string;
  data?: unknown;
  id?: number;
  /** If `type` is "event": the name of an event that is named like a message of the envelope. */
  event?: string;
  offset?: string | null;
  [key: string]: unknown;
}

/** Why a link ended. */
export interface End {
  error: CrossbandError;
  /** Whether reconnecting would end the same way. */
  final: boolean;
}

/** One connection over one door. After `close` it calls its listener no more. */
export interface Link {
  /** Send an envelope; returns false if too many are queued. */
  send(text: string, message: Message): boolean;
  /** Make the server send something, if the connection has no heartbeat that scripts can see. */
  probe(): void;
  close(): void;
}

export interface LinkListener {
  message(message: Message): void;
  /** Something arrived, if only a comment. */
  alive(): void;
  /** The link ended by itself; not called after `close`. */
  end(end: End): void;
}
