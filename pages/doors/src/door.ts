// What the three doors have in common: the page knows a door only by this.

export const DOORS = ["socketio", "websocket", "sse"] as const;
export type DoorName = (typeof DOORS)[number];

/**
 * connecting → connected; connected → cut (by the visitor) or reconnecting (by anything else);
 * refused: the server said no, and the door does not come back by itself. off: the server has no such door.
 */
export type DoorState = "connecting" | "connected" | "cut" | "reconnecting" | "refused" | "off";

export interface Welcome {
  /** The socket's id at the server: what others see as `from`. */
  sid: string;
  /** The server restored the session, and replays what was missed. */
  recovered: boolean;
  /** Where the stream stands; undefined where the client library does not tell. */
  cursor: string | undefined;
}

export interface Gap {
  reason: string;
  offset: string;
}

/** What a door tells the page. */
export interface DoorListener {
  onState(state: DoorState, detail?: string): void;
  onWelcome(welcome: Welcome): void;
  /** `data` is whatever was published as `chat:message`, unchecked. */
  onMessage(data: unknown, cursor: string): void;
  onGap(gap: Gap): void;
  /** The server reported an error that belongs to no message of ours. */
  onError(text: string): void;
  /** How the bytes travel, as far as the client can tell. */
  onTransport(name: string): void;
}

export interface Door {
  readonly name: DoorName;
  open(): void;
  /** Break the connection as a lost network would: the session stays at the server. */
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

/** Read a typed error as the server words it: `{code, error, path?, reason?}`. */
export function errorText(error: unknown): string {
  if (typeof error !== "object" || error === null) return String(error);
  const { error: text, reason, path } = error as Record<string, unknown>;
  const where = typeof path === "string" && path !== "$" ? ` at ${path}` : "";
  const why = typeof reason === "string" ? `: ${reason}${where}` : "";
  return `${typeof text === "string" ? text : JSON.stringify(error)}${why}`;
}
