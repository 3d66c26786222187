// The interface that all three doors implement; the page knows nothing else of a door.

export const DOORS = ["socketio", "websocket", "sse"] as const;
export type DoorName = (typeof DOORS)[number];

/**
 * connecting → connected; connected → cut (by the visitor) or reconnecting (by anything else);
 * refused: the server refused, and the door does not reconnect by itself. off: the server has no such door.
 */
export type DoorState = "connecting" | "connected" | "cut" | "reconnecting" | "refused" | "off";

export interface Welcome {
  /** The socket's id at the server, which others see as `from`. */
  sid: string;
  /** Whether the server restored the session, and replays what was missed. */
  recovered: boolean;
  /** The cursor of the stream; undefined if the client library does not expose it. */
  cursor: string | undefined;
}

export interface Gap {
  reason: string;
  offset: string;
}

/** What a door reports to the page. */
export interface DoorListener {
  onState(state: DoorState, detail?: string): void;
  onWelcome(welcome: Welcome): void;
  /** `data` is anything published as `chat:message`, unchecked. */
  onMessage(data: unknown, cursor: string): void;
  onGap(gap: Gap): void;
  /** The server reported an error that is not about one of our messages. */
  onError(text: string): void;
  /** The transport, as far as the client knows. */
  onTransport(name: string): void;
}

export interface Door {
  readonly name: DoorName;
  open(): void;
  /** Break the connection as a network failure would: the server keeps the session. */
  cut(): void;
  restore(): void;
  /** Send `chat:message`; resolves with the server's acknowledgement. */
  send(content: string): Promise<unknown>;
}

/** The server answered a message with an error. */
export class Refusal extends Error {}

// Longest wait for an acknowledgement, in milliseconds.
export const ACK_TIMEOUT = 5_000;

/** Milliseconds before reconnect attempt `attempt` (from 1): 0.4 s doubling to 5 s, spread by half. */
export function backoff(attempt: number): number {
  const delay = Math.min(5_000, 400 * 2 ** (attempt - 1));
  return delay * (0.75 + Math.random() / 2);
}

/** Format an error of the server: `{code, error, path?, reason?}`. */
export function errorText(error: unknown): string {
  if (typeof error !== "object" || error === null) return String(error);
  const { error: text, reason, path } = error as Record<string, unknown>;
  const where = typeof path === "string" && path !== "$" ? ` at ${path}` : "";
  const why = typeof reason === "string" ? `: ${reason}${where}` : "";
  return `${typeof text === "string" ? text : JSON.stringify(error)}${why}`;
}
