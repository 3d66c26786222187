// Shows how busy each page is, by polling the hub's status, and lets visitors copy commands.
import { about, fillCommands } from "../../about";
import { copyButton } from "../../copy";

// Milliseconds between two polls.
const INTERVAL = 2_000;

interface Status {
  total: { namespaces: Record<string, { clients: number }> };
  nodes: Record<string, { uptime: number; version: string }>;
}

const state = element("state");
const lives = document.querySelectorAll<HTMLElement>("[data-namespace]");
let timer = 0;

function show(status: Status): void {
  for (const live of lives) {
    const clients = status.total.namespaces[live.dataset["namespace"] ?? ""]?.clients ?? 0;
    live.dataset["state"] = clients === 0 ? "empty" : "busy";
    part(live, "count").textContent = String(clients);
    part(live, "unit").textContent = (clients === 1 ? live.dataset["one"] : live.dataset["many"]) ?? "";
  }
  const [node] = Object.values(status.nodes).sort((one, other) => other.uptime - one.uptime);
  if (node !== undefined) {
    tell("connected", `The server has been up for ${duration(node.uptime)} (Crossband ${node.version}).`);
  }
}

/** Show the state of the server. Screen readers announce a change of state, not each minute. */
function tell(kind: "connected" | "lost", text: string): void {
  if (state.dataset["state"] === kind && kind === "connected") {
    state.setAttribute("aria-live", "off");
  } else {
    state.setAttribute("aria-live", "polite");
    state.dataset["state"] = kind;
  }
  if (state.textContent !== text) state.textContent = text;
}

async function ask(): Promise<void> {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    const response = await fetch("./api/status?nodes=all", { signal: AbortSignal.timeout(INTERVAL) });
    if (response.ok) show((await response.json()) as Status);
    else if (response.status < 500) keepsItsNumbers();
    else throw new Error(response.statusText);
  } catch {
    for (const live of lives) live.dataset["state"] = "stale";
    tell("lost", "The server does not respond. The numbers are out of date; this page keeps trying.");
  }
  clearTimeout(timer);
  timer = window.setTimeout(() => void ask(), INTERVAL);
}

/** The status may be switched off, or reserved for holders of an API key. */
function keepsItsNumbers(): void {
  for (const live of lives) live.hidden = true;
  tell("connected", "The server is up. It does not publish its numbers.");
}

function duration(seconds: number): string {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return "less than a minute";
  if (minutes < 60) return minutes === 1 ? "a minute" : `${minutes} minutes`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return hours === 1 ? "an hour" : `${hours} hours`;
  return `${Math.floor(hours / 24)} days`;
}

function part(live: HTMLElement, name: string): HTMLElement {
  const found = live.querySelector<HTMLElement>(`[data-part="${name}"]`);
  if (found === null) throw new Error(`the page has no ${name}`);
  return found;
}

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}

const base = new URL(".", location.href);
for (const row of document.querySelectorAll(".terminal dl > div")) {
  const command = row.querySelector("code");
  const button = row.querySelector("button");
  if (command === null || button === null) throw new Error("a command has no button");
  copyButton(button, row.querySelector("dt")?.textContent ?? "", () => command.textContent ?? "");
}
void about(base).then((told) => fillCommands(told, base));
document.addEventListener("visibilitychange", () => void ask());
void ask();
