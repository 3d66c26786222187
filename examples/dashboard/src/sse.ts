// An event stream for a component, by the browser's EventSource.
import { useEffect, useInsertionEffect, useRef, useState } from "react";

export interface SseMessage {
  event: string;
  /** Parsed from JSON. */
  data: unknown;
  /** The cursor. */
  lastEventId: string;
}

export interface SseOptions {
  /** null: not now. */
  url: string | null;
  events: readonly string[];
  onMessage: (message: SseMessage) => void;
}

export interface SseState {
  isConnected: boolean;
  /** Why there is no stream; null while there is one, and before the first failure. */
  error: Error | null;
}

// Milliseconds until a stream is asked for again that the browser gave up: it does when anything
// but a stream answers, as a proxy does while the server restarts.
const AGAIN = 3_000;

/** Follow a stream from mount to unmount; it comes back after a cut, and shows its cursor. */
export function useSSE(options: SseOptions): SseState {
  const newest = useRef(options);
  useInsertionEffect(() => {
    newest.current = options;
  });
  const [state, setState] = useState<SseState>({ isConnected: false, error: null });
  const { url } = options;
  const events = options.events.join();

  useEffect(() => {
    setState({ isConnected: false, error: null });
    if (url === null) return undefined;
    let source: EventSource | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let cursor = "";
    const lose = (reason: string): void => setState({ isConnected: false, error: new Error(reason) });
    const open = (): void => {
      clearTimeout(timer);
      const address = new URL(url);
      if (cursor !== "") address.searchParams.set("lastEventId", cursor);
      source?.close();
      source = new EventSource(address);
      source.onopen = () => setState({ isConnected: true, error: null });
      const own = source;
      source.onerror = () => {
        lose("the connection was lost");
        if (own.readyState === EventSource.CLOSED) timer = setTimeout(open, AGAIN);
      };
      for (const event of events.split(",")) {
        source.addEventListener(event, ({ data, lastEventId }: MessageEvent<string>) => {
          cursor = lastEventId;
          newest.current.onMessage({ event, data: JSON.parse(data), lastEventId });
        });
      }
    };
    // EventSource waits on a dead connection for as long as the system does.
    const goOffline = (): void => {
      clearTimeout(timer);
      source?.close();
      lose("the network is gone");
    };
    addEventListener("offline", goOffline);
    addEventListener("online", open);
    open();
    return () => {
      removeEventListener("offline", goOffline);
      removeEventListener("online", open);
      clearTimeout(timer);
      source?.close();
    };
  }, [url, events]);

  return state;
}
