// What both ends say to each other: event maps, options, and the messages of the envelope.

// As in Socket.IO: a name, and a function whose parameters are what is sent. A last parameter
// that is a function is the acknowledgement. The same maps fit `socket.io-client`.
export type EventsMap = { [event: string]: any };
export type DefaultEvents = { [event: string]: (...args: any[]) => void };

type AnyFunction = (...args: any[]) => any;
type ParametersOf<F> = F extends (...args: infer A) => any ? A : never;
type WithoutAck<A extends unknown[]> = A extends [...infer Rest, AnyFunction] ? Rest : A;
type AckOf<A extends unknown[]> = A extends [...unknown[], infer Last extends AnyFunction] ? Last : undefined;
/** What arrives for these arguments: one value as it is, several as an array, none as null. */
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
/** The arguments of an event as they are emitted. */
export type Args<F> = WithoutAck<ParametersOf<F>>;
/** What the other side answers, from the event's acknowledgement function. */
export type Answer<F> = AckOf<ParametersOf<F>> extends (...args: infer A) => any ? Received<A> : any;
type Reply<F> = AckOf<ParametersOf<F>> extends (...args: infer A) => any
  ? (...answer: A) => void
  : (answer?: unknown) => void;
/** `ack` answers a server that asked for it; otherwise it does nothing. */
export type Listener<F> = (data: Data<F>, ack: Reply<F>) => unknown;

export type State = "connecting" | "connected" | "reconnecting" | "closed";
export type TransportName = "websocket" | "sse";

export interface Connected {
  /** The client's public id at the server. */
  id: string;
  transport: TransportName;
  /** What was missed since the last connection follows, in order. */
  recovered: boolean;
}

export interface Gap {
  /** `unknown`, `expired`, `session`, `timeout`, `unencodable` or `lost`; see the how-to page on resuming. */
  reason: string;
  /** Where the client goes on from. */
  offset: string | null;
}

/** The client's own events. The server's events of these names are heard by `onAny` only. */
export interface ClientEvents {
  connect: (connected: Connected) => void;
  /** A connection ended. `reason` is a close code's text, or what broke it. */
  disconnect: (reason: string) => void;
  /** An attempt to connect failed. When `state` is then "closed" it was the last. */
  connect_error: (error: CrossbandError) => void;
  /** The server could not take an event for which no acknowledgement was asked. */
  error: (error: CrossbandError) => void;
  /** Events were lost: load afresh what you show. */
  gap: (gap: Gap) => void;
  /** The server is about to stop. The client comes back by itself. */
  shutdown: (message: string) => void;
  state: (state: State) => void;
}

/** What failed, with the server's `code` where it has one. */
export class CrossbandError extends Error {
  override readonly name = "CrossbandError";
  constructor(
    readonly code: string,
    message: string,
    /** Everything else the server said, such as `path` and `reason`; HTTP answers have `status`. */
    readonly details: Readonly<Record<string, unknown>> = {},
  ) {
    super(message);
  }
}

export type Token = string | (() => string | null | undefined | Promise<string | null | undefined>);

/** What of `Storage` is needed. */
export type Memory = Pick<Storage, "getItem" | "setItem" | "removeItem">;

export interface Timers {
  setTimeout(callback: () => void, ms: number): any;
  clearTimeout(timer: any): void;
}

/** Times are in milliseconds. */
export interface Options {
  /** Default "/". */
  namespace?: string;
  /** Rooms to be in from the start. The server must allow it. */
  rooms?: readonly string[];
  /** In order of preference; default WebSocket, then the event stream. */
  transports?: readonly TransportName[];
  /** A token, or what returns one: asked before every attempt, and before the token expires. */
  token?: Token;
  /** Further fields of the address, for `socket.handshake.query`. */
  query?: Readonly<Record<string, string>>;
  /** Connect at once. Default true. */
  autoConnect?: boolean;
  /** Come back after a cut. Default true. */
  reconnection?: boolean;
  /** Give up after so many failed attempts in a row. Default: never. */
  reconnectionAttempts?: number;
  /** The longest wait before the first attempt; it doubles with each. Default 500. */
  reconnectionDelay?: number;
  /** What it grows to. Default 30,000. */
  reconnectionDelayMax?: number;
  /** How long an attempt may take until the welcome. Default 10,000. */
  connectTimeout?: number;
  /** How long `emitWithAck` waits. Default 10,000. */
  ackTimeout?: number;
  /** After so long a silence the connection is examined, and given up 10 s later. Default 25,000; 0 never. */
  heartbeat?: number;
  /** Events kept while there is no connection. Default 100. */
  bufferSize?: number;
  /** Resume after a reload of the page: keep session and cursor in `storage`, under this key. */
  persist?: boolean | string;
  /** Default `localStorage`. */
  storage?: Memory;
  /** Send cookies to another origin: event stream only. WebSockets always do. */
  withCredentials?: boolean;
  /** Paths of the doors below the address, where the server has others. */
  paths?: { websocket?: string; events?: string };
  /** Default: those of the platform. */
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
  /** The name of an event that is a word of the envelope, where `type` is "event". */
  event?: string;
  offset?: string | null;
  [key: string]: unknown;
}

/** Why a link is over. */
export interface End {
  error: CrossbandError;
  /** Coming back would end the same way. */
  final: boolean;
}

/** One connection over one door. After `close` it says nothing more. */
export interface Link {
  /** Send an envelope; false when too much waits already. */
  send(text: string, message: Message): boolean;
  /** Ask for a sign of life, where the connection gives none by itself. */
  probe(): void;
  close(): void;
}

export interface LinkListener {
  message(message: Message): void;
  /** Something arrived, be it a comment. */
  alive(): void;
  /** The link is over, by itself; not after `close`. */
  end(end: End): void;
}
