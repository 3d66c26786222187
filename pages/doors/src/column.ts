// One door on the page: shows its state and messages, and takes the visitor's actions.
import { copyButton } from "../../copy";
import type { DoorName, DoorState, Gap } from "./door";
import type { Heard, Publication } from "./ledger";
import { highlight, snippets } from "./snippets";

interface Copy {
  name: string;
  via: string;
}

export const COPY: Record<DoorName, Copy> = {
  socketio: { name: "Socket.IO", via: "the official socket.io-client, unchanged" },
  websocket: { name: "WebSocket", via: "the browser’s own, with a JSON envelope" },
  sse: { name: "EventSource", via: "Server-Sent Events, with POST to send" },
};

const STATES: Record<DoorState, string> = {
  connecting: "Connecting",
  connected: "Connected",
  cut: "Cut off",
  reconnecting: "Reconnecting",
  refused: "Refused",
  off: "Switched off",
};

// Rows kept in a column.
const ROWS = 200;
// How near its end, in pixels, a tape must be to follow what is added.
const NEAR = 48;

export type NoteKind = "plain" | "away" | "caught-up" | "gap" | "error";

export interface ColumnActions {
  onToggle(): void;
  onSend(content: string): void;
}

export class Column {
  readonly root: HTMLElement;
  private readonly ghosts = new Map<string, HTMLLIElement>();

  constructor(
    private readonly door: DoorName,
    template: HTMLTemplateElement,
    actions: ColumnActions,
  ) {
    const fragment = template.content.cloneNode(true) as DocumentFragment;
    this.root = fragment.querySelector<HTMLElement>("[data-part='root']") ?? fail("root");
    const { name, via } = COPY[door];
    this.root.dataset["door"] = door;
    this.root.dataset["testid"] = `door-${door}`;

    const title = this.part("name");
    title.textContent = name;
    title.id = `${door}-name`;
    this.root.setAttribute("aria-labelledby", title.id);
    this.part("via").textContent = via;
    this.part("tape").setAttribute("aria-label", `Messages received over ${name}`);
    this.part("label").textContent = `Message to send over ${name}`;
    this.part("empty").textContent = "Nothing received yet. Send something, over any door.";
    this.input.id = `${door}-input`;
    this.part("label").setAttribute("for", this.input.id);

    this.part("cut").addEventListener("click", () => actions.onToggle());
    this.part("form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.root.dataset["state"] !== "connected") {
        this.acknowledge("Not sent: this door is not connected.", "failed");
        return;
      }
      actions.onSend(this.input.value.trim() || this.input.placeholder);
      this.input.value = "";
    });
    this.showCode();
  }

  /** The text to send when the visitor types nothing. */
  set suggestion(word: string) {
    this.input.placeholder = word;
  }

  setState(state: DoorState): void {
    this.root.dataset["state"] = state;
    this.part("state").textContent = STATES[state];
    this.part("cut").hidden = state === "off";
    const action =
      state === "cut" ? "Restore this door" : state === "refused" ? "Try again" : "Cut this door";
    this.part("cut-label").textContent = action;
    this.part("cut").setAttribute("aria-label", `${action}: ${COPY[this.door].name}`);
    this.part("send").setAttribute("aria-disabled", String(state !== "connected"));
  }

  setTransport(name: string): void {
    this.part("transport").textContent = name;
  }

  setCursor(cursor: string): void {
    const field = this.part("cursor");
    field.textContent = cursor;
    field.title = cursor;
  }

  setNote(text: string, kind: NoteKind = "plain"): void {
    const note = this.part("note");
    note.textContent = text;
    note.dataset["kind"] = kind;
  }

  /** Show what must never happen: a publication received twice, or out of order. */
  setAlarm(doubled: number, misplaced: number): void {
    const alarm = this.part("alarm");
    alarm.dataset["doubled"] = String(doubled);
    alarm.dataset["misplaced"] = String(misplaced);
    alarm.hidden = doubled + misplaced === 0;
    alarm.textContent = `${doubled} received twice, ${misplaced} out of order: this must never happen.`;
  }

  acknowledge(text: string, outcome: "sent" | "received" | "failed"): void {
    const ack = this.part("ack");
    ack.textContent = text;
    ack.dataset["outcome"] = outcome;
  }

  /** Add a message at the end, in the order of arrival. */
  hear({ publication, mark }: Heard, sender: DoorName | undefined, senderName: string): void {
    const { cursor, content, number } = publication;
    this.ghosts.get(cursor)?.remove();
    this.ghosts.delete(cursor);

    const row = this.row("message", number);
    row.dataset["testid"] = "message";
    row.dataset["offset"] = cursor;
    row.dataset["mark"] = mark;
    row.dataset["sender"] = sender ?? "other";
    row.append(span("content", content));
    if (mark === "caught-up") row.append(span("tag", "caught up"));
    row.append(span("sender", senderName));
    this.append(row);
    this.pulse();
  }

  /** Reserve a place for a message that the door misses while it is away. */
  miss({ cursor, number }: Publication): void {
    if (this.ghosts.has(cursor)) return;
    const row = this.row("ghost", number);
    row.dataset["testid"] = "missed";
    row.append(span("content", "missed"));
    this.ghosts.set(cursor, row);
    this.append(row);
  }

  /** Mark the missed messages as lost. */
  tellGap({ reason }: Gap, lost: readonly Publication[]): void {
    for (const { cursor } of lost) {
      const row = this.ghosts.get(cursor);
      if (row === undefined) continue;
      row.className = "ghost lost";
      row.dataset["testid"] = "lost";
      row.querySelector(".content")?.replaceChildren("not replayed");
    }
    this.ghosts.clear();
    const row = this.row("gap");
    row.dataset["testid"] = "gap";
    row.dataset["reason"] = reason;
    row.append(span("content", `Gap: ${gapText(reason)}`));
    this.append(row);
  }

  private get input(): HTMLInputElement {
    return this.part("input") as HTMLInputElement;
  }

  private part(name: string): HTMLElement {
    return (
      this.root.querySelector<HTMLElement>(`[data-part='${name}']`) ?? fail(name)
    );
  }

  private row(kind: string, number?: number): HTMLLIElement {
    const row = document.createElement("li");
    row.className = kind;
    row.append(span("number", number === undefined ? "" : String(number)));
    return row;
  }

  private append(row: HTMLLIElement): void {
    const tape = this.part("tape");
    const list = this.part("messages");
    const follows = tape.scrollHeight - tape.scrollTop - tape.clientHeight < NEAR;
    this.part("empty").hidden = true;
    list.append(row);
    while (list.childElementCount > ROWS) list.firstElementChild?.remove();
    if (follows) tape.scrollTop = tape.scrollHeight;
  }

  private pulse(): void {
    const wave = this.root.querySelector(".wave");
    wave?.getAnimations().forEach((animation) => animation.cancel());
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    wave?.animate([{ backgroundPositionX: "-56px" }, { backgroundPositionX: "0" }], {
      duration: 700,
      easing: "cubic-bezier(.2, .7, .2, 1)",
      pseudoElement: "::before",
    });
  }

  private showCode(): void {
    const code = snippets[this.door].trim();
    this.part("code").append(highlight(code));
    copyButton(this.part("copy") as HTMLButtonElement, `the code of the ${COPY[this.door].name} door`, () => code);
  }
}

/** Say in plain words why messages cannot be replayed. */
export function gapText(reason: string): string {
  switch (reason) {
    case "unknown":
      return "the server does not know this cursor (a restart?).";
    case "expired":
      return "this cursor is older than the server’s history.";
    case "session":
      return "the server has dropped this session.";
    case "lost":
      return "the server’s broker has lost messages.";
    default:
      return `the server cannot replay (${reason}).`;
  }
}

function span(kind: string, text: string): HTMLSpanElement {
  const element = document.createElement("span");
  element.className = kind;
  element.textContent = text;
  return element;
}

function fail(name: string): never {
  throw new Error(`the page has no ${name}`);
}
