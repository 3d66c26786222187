// When to reconnect: how long to wait, and which events end the wait.

/** Full jitter: anything from 0 to `base` doubled `attempt` times, at most `max`; milliseconds. */
export function backoff(attempt: number, base: number, max: number, random: () => number): number {
  return random() * Math.min(max, base * 2 ** attempt);
}

export interface WakeListener {
  /** The network is back, or the page became visible. */
  wake(): void;
  /** The network is gone. */
  lost?(): void;
}

/** Listen to the page's events; returns a function that stops. Without a page it does nothing. */
export function onWake({ wake, lost }: WakeListener): () => void {
  const { window: page, document } = globalThis;
  if (!page?.addEventListener) return () => {};
  const seen = (): void => {
    if (document.visibilityState === "visible") wake();
  };
  const gone = (): void => lost?.();
  page.addEventListener("online", wake);
  page.addEventListener("offline", gone);
  document?.addEventListener("visibilitychange", seen);
  return () => {
    page.removeEventListener("online", wake);
    page.removeEventListener("offline", gone);
    document?.removeEventListener("visibilitychange", seen);
  };
}
