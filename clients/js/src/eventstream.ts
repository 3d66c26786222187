// Reads Server-Sent Events of any server with `fetch`, in browsers and in Node.js. The client needs
// what EventSource lacks: comments (heartbeats), the status and body of a refusal, and request
// headers (which keep a token out of logs). Node.js has no EventSource.
import { CrossbandError } from "./types.js";

export interface StreamEvent {
  /** "message" if the server gave no name. */
  event: string;
  data: string;
  /** Undefined if the event itself has none. */
  id: string | undefined;
}

/** Splits text into events, as in the HTML standard, §9.2.6. */
export class EventStreamParser {
  #rest = "";
  #data: string[] = [];
  #event = "";
  #id: string | undefined;
  #afterCarriageReturn = false;

  constructor(
    private readonly onEvent: (event: StreamEvent) => void,
    private readonly onRetry: (ms: number) => void = () => {},
  ) {}

  feed(chunk: string): void {
    if (this.#afterCarriageReturn && chunk.startsWith("\n")) chunk = chunk.slice(1);
    if (chunk === "") return;
    this.#afterCarriageReturn = chunk.endsWith("\r");
    const lines = (this.#rest + chunk).split(/\r\n|\r|\n/);
    this.#rest = lines.pop()!;
    for (const line of lines) this.#line(line);
  }

  #line(line: string): void {
    if (line === "") {
      const event = { event: this.#event || "message", data: this.#data.join("\n"), id: this.#id };
      const hasData = this.#data.length > 0;
      this.#data = [];
      this.#event = "";
      this.#id = undefined;
      if (hasData) this.onEvent(event);
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#event = value;
    else if (field === "id") {
      if (!value.includes("\0")) this.#id = value;
    } else if (field === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }
}

export interface StreamListener {
  open?(): void;
  /** Bytes arrived, if only a comment. */
  alive?(): void;
  event(event: StreamEvent): void;
  retry?(ms: number): void;
}

/** Read one stream until it ends. Throws CrossbandError if it is refused, or the error that broke it. */
export async function readEventStream(
  fetchStream: typeof fetch,
  url: string | URL,
  init: RequestInit,
  listener: StreamListener,
): Promise<void> {
  const response = await fetchStream(url, { cache: "no-store", ...init });
  const type = response.headers.get("content-type") ?? "";
  if (response.status !== 200 || !type.startsWith("text/event-stream") || !response.body) {
    throw await refusal(response);
  }
  listener.open?.();
  const parser = new EventStreamParser(
    (event) => listener.event(event),
    (ms) => listener.retry?.(ms),
  );
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    listener.alive?.();
    parser.feed(decoder.decode(value, { stream: true }));
  }
}

/** Convert an error response to an error: Crossband's JSON, or another server's response. */
export async function refusal(response: Response): Promise<CrossbandError> {
  const { status } = response;
  if (status === 204) return new CrossbandError("disconnected", "Ended by the server", { status });
  const body: unknown = await response.json().catch(() => undefined);
  if (typeof body === "object" && body !== null && "type" in body && body.type === "error") {
    const { type: _, code, error, ...details } = body as Record<string, unknown>;
    return new CrossbandError(String(code), String(error), { ...details, status });
  }
  // Not Crossband's: a proxy, a captive portal.
  return new CrossbandError("http", `HTTP ${status}, no event stream`, { status });
}

/** Whether a retry would be refused again: the server's own 4xx, and 204. */
export function isFinal({ code, details }: CrossbandError): boolean {
  const status = Number(details["status"]);
  return status === 204 || (code !== "http" && status >= 400 && status < 500 && status !== 408 && status !== 429);
}
