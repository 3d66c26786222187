// What the server says about itself: its command, and the paths of its doors.

export type Doors = Record<"socketio" | "websocket" | "sse", string | null>;

export interface About {
  /** The command that runs `crossband` where the server runs. */
  command: string;
  /** Paths below the hub's mount point; null for a door that is switched off. */
  doors: Doors;
}

// For a server that does not say.
const USUAL: About = {
  command: "crossband",
  doors: { socketio: "/socket.io", websocket: "/ws", sse: "/events" },
};
// Milliseconds.
const PATIENCE = 5_000;

export async function about(base: URL): Promise<About> {
  try {
    const response = await fetch(new URL("api/demo", base), { signal: AbortSignal.timeout(PATIENCE) });
    return response.ok ? ((await response.json()) as About) : USUAL;
  } catch {
    return USUAL;
  }
}

/** Return the URL of a door's path. */
export function addressOf(path: string, base: URL): URL {
  return new URL(path.replace(/^\//, ""), base);
}

/** Fill in the commands of the page as they work with this server. */
export function fillCommands({ command, doors }: About, base: URL): void {
  const fill = (mark: string, text: string) => {
    for (const place of document.querySelectorAll(`[${mark}]`)) place.textContent = text;
  };
  fill("data-program", command);
  fill("data-origin", base.href);
  if (doors.sse !== null) fill("data-events", addressOf(doors.sse, base).href);
  for (const needing of document.querySelectorAll<HTMLElement>("[data-needs]")) {
    const needed = (needing.dataset["needs"] ?? "").split(" ") as (keyof Doors)[];
    needing.hidden = needed.every((door) => doors[door] === null);
  }
}
