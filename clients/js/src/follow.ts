// Follows one event stream of any server, across lost connections. It knows neither envelopes nor sessions.
import { readEventStream, type StreamEvent } from "./eventstream.js";
import { CrossbandError } from "./types.js";
import { backoff, onWake } from "./wake.js";

export interface FollowOptions {
  headers?: Readonly<Record<string, string>>;
  withCredentials?: boolean;
  heartbeat?: number;
  reconnectionDelay?: number;
  reconnectionDelayMax?: number;
  fetch?: typeof fetch;
}

export interface Follower {
  open(): void;
  event(event: StreamEvent, lastEventId: string): void;
  /** The stream reconnects by itself, unless the server refused it for good. */
  lost(error: CrossbandError): void;
}

/** Start following; returns a function that stops. */
export function follow(address: string, options: FollowOptions, follower: Follower): () => void {
  const { headers, withCredentials, heartbeat = 0, reconnectionDelayMax = 30_000 } = options;
  const { fetch = globalThis.fetch.bind(globalThis) } = options;
  const url = new URL(address, globalThis.location?.href);
  let delay = options.reconnectionDelay ?? 500;
  let cursor = "";
  let attempt = 0;
  let abort: AbortController | undefined;
  // Times the next attempt, or the silence of the stream.
  let timer: ReturnType<typeof setTimeout> | undefined;

  function watch(): void {
    if (heartbeat <= 0) return;
    clearTimeout(timer);
    timer = setTimeout(() => {
      drop(new CrossbandError("silent", "The stream was silent for too long"));
    }, heartbeat);
  }

  function open(): void {
    clearTimeout(timer);
    const own = new AbortController();
    abort = own;
    const { signal } = own;
    const sent: Record<string, string> = {
      // With JSON, refusals keep their status; without it the server sends a stream that ends, for EventSource.
      Accept: "text/event-stream, application/json",
      ...headers,
    };
    if (cursor) {
      // To another origin this header would need a preflight, which EventSource does not need.
      const { location = url } = globalThis;
      if (url.origin === location.origin) sent["Last-Event-ID"] = cursor;
      else url.searchParams.set("lastEventId", cursor);
    }
    watch();
    readEventStream(
      fetch,
      url,
      { headers: sent, credentials: withCredentials ? "include" : "same-origin", signal },
      {
        open() {
          if (signal.aborted) return;
          attempt = 0;
          follower.open();
        },
        alive: () => signal.aborted || watch(),
        event(event) {
          if (signal.aborted) return;
          cursor = event.id ?? cursor;
          follower.event(event, cursor);
        },
        retry: (ms) => void (delay = ms),
      },
    ).then(
      () => signal.aborted || drop(new CrossbandError("closed", "The stream ended")),
      (error: unknown) => {
        if (signal.aborted) return;
        const known = error instanceof CrossbandError;
        drop(known ? error : new CrossbandError("closed", "The connection was lost"));
      },
    );
  }

  function drop(error: CrossbandError): void {
    abort?.abort();
    abort = undefined;
    clearTimeout(timer);
    if (isFinal(Number(error.details["status"]))) stop();
    else timer = setTimeout(open, backoff(attempt++, delay, reconnectionDelayMax, Math.random));
    follower.lost(error);
  }

  const stopWaking = onWake({
    wake: () => abort || open(),
    lost: () => abort && drop(new CrossbandError("offline", "Offline")),
  });

  function stop(): void {
    stopWaking();
    clearTimeout(timer);
    abort?.abort();
  }

  open();
  return stop;
}

/** Like EventSource, give up after an error status, except those that a proxy may send for a while. */
function isFinal(status: number): boolean {
  return status === 204 || (status >= 400 && status < 500 && status !== 408 && status !== 429);
}
