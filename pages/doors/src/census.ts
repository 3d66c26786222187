// Shows how many clients the hub has, by transport, by polling its status.
import { statusUrl } from "./addresses";

// Milliseconds between two polls.
const INTERVAL = 4_000;
const TRANSPORTS = ["websocket", "polling", "sse"] as const;

interface Status {
  total: { clients: Record<"total" | (typeof TRANSPORTS)[number], number> };
  nodes: Record<string, { version: string }>;
}

export interface Census {
  /** Poll now rather than at the next interval. */
  refresh(): void;
}

/** Keep the numbers under `root` up to date while the page is visible. */
export function startCensus(root: HTMLElement): Census {
  let timer = 0;
  const field = (name: string): HTMLElement | null => root.querySelector(`[data-count="${name}"]`);

  function show(status: Status): void {
    for (const name of ["total", ...TRANSPORTS] as const) {
      const output = field(name);
      if (output !== null) output.textContent = String(status.total.clients[name]);
    }
    const version = document.querySelector("[data-version]");
    if (version !== null) version.textContent = Object.values(status.nodes)[0]?.version ?? "";
    root.dataset["state"] = "fresh";
  }

  async function ask(): Promise<void> {
    clearTimeout(timer);
    if (document.hidden) return;
    try {
      const response = await fetch(statusUrl(), { signal: AbortSignal.timeout(INTERVAL) });
      if (!response.ok) throw new Error(response.statusText);
      show((await response.json()) as Status);
    } catch {
      // The doors show what is wrong; the numbers are only marked as out of date.
      root.dataset["state"] = "stale";
    }
    clearTimeout(timer);
    timer = window.setTimeout(() => void ask(), INTERVAL);
  }

  document.addEventListener("visibilitychange", () => void ask());
  void ask();
  return {
    refresh: () => {
      clearTimeout(timer);
      // Doors often open or close together: poll once for all.
      timer = window.setTimeout(() => void ask(), 250);
    },
  };
}
