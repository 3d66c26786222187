// One connection over the event stream door: a stream to receive, and POST to send.
import { isFinal, readEventStream, refusal, type StreamEvent } from "./eventstream.js";
import { CrossbandError, type Link, type LinkListener, type Message } from "./types.js";

export interface StreamAddress {
  /** The URL of the stream, with its query. */
  stream: URL;
  /** The URL that clients post to, without their id. */
  back: string;
}

export interface StreamRequest {
  fetch: typeof fetch;
  token: string | null | undefined;
  credentials: RequestCredentials;
  /** How many messages may wait to be sent. */
  limit: number;
}

// Events whose fields are those of the message itself.
const OWN = ["welcome", "gap", "error", "server:shutdown"];

export function openEventStream(
  { stream, back }: StreamAddress,
  { fetch, token, credentials, limit }: StreamRequest,
  listener: LinkListener,
): Link {
  const abort = new AbortController();
  const { signal } = abort;
  const headers: Record<string, string> = token ? { Authorization: `Bearer ${token}` } : {};
  let sid = "";
  let session = "";
  let waiting = 0;
  let turn: Promise<void> = Promise.resolve();

  function onEvent({ event, data, id }: StreamEvent): void {
    if (signal.aborted) return;
    const value = parse(data);
    if (event === "welcome") ({ sid, session } = value);
    if (event === "ack:request" || event === "event:named") listener.message({ ...value, offset: id || null });
    else if (OWN.includes(event)) listener.message({ ...value, type: event });
    else listener.message({ type: event, data: value, offset: id || null });
  }

  function end(error: CrossbandError, final: boolean): void {
    if (signal.aborted) return;
    abort.abort();
    listener.end({ error, final });
  }

  function onLost(error: unknown): void {
    if (error instanceof CrossbandError) end(error, isFinal(error));
    else end(new CrossbandError("closed", "The connection was lost"), false);
  }

  async function post(text: string, { id }: Message): Promise<void> {
    // Deliver the answer as on a WebSocket: as a message.
    let answer: Message;
    try {
      const response = await fetch(`${back}/${sid}`, {
        method: "POST",
        headers: { ...headers, "Content-Type": "application/json", "X-Crossband-Session": session },
        body: text,
        credentials,
        signal,
      });
      if (response.ok) answer = await response.json();
      else {
        const { code, message, details } = await refusal(response);
        answer = { ...details, type: "error", code, error: message };
      }
    } catch {
      answer = { type: "error", code: "disconnected", error: "Lost before the answer; perhaps handled" };
    }
    if (id !== undefined) answer.id = id;
    if (!signal.aborted) listener.message(answer);
  }

  const alive = (): void => {
    if (!signal.aborted) listener.alive();
  };
  readEventStream(fetch, stream, { headers, credentials, signal }, { alive, event: onEvent }).then(
    () => end(new CrossbandError("closed", "Stream ended"), false),
    onLost,
  );

  return {
    send(text, message) {
      // An acknowledgement that a handler awaits must not wait behind that handler's event.
      if (message.type === "ack") {
        void post(text, {} as Message);
        return true;
      }
      if (waiting >= limit) return false;
      waiting += 1;
      // One after another: concurrent requests arrive in any order.
      turn = turn.then(() => post(text, message)).then(() => void (waiting -= 1));
      return true;
    },
    // The server sends a comment every `keepalive_interval`.
    probe() {},
    close() {
      abort.abort();
    },
  };
}

/** Decode an event's data: JSON, or in a plain namespace perhaps bare text. */
function parse(data: string) {
  try {
    return JSON.parse(data);
  } catch {
    return data;
  }
}
