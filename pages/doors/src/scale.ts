// The scale: the latest publications as lines across the three bands.
import { COPY } from "./column";
import { DOORS, type DoorName, type DoorState } from "./door";
import type { Mark, Publication } from "./ledger";

// Width of one publication, in pixels.
const STEP = 24;

const SPOKEN: Record<Mark, string> = {
  awaited: "on its way",
  live: "heard",
  missed: "missed so far",
  "caught-up": "caught up",
  lost: "not replayed",
};

export class Scale {
  private readonly lanes: Record<DoorName, HTMLElement>;
  private readonly ruler: HTMLElement;
  private places = 0;
  private due = 0;

  constructor(
    private readonly root: HTMLElement,
    private readonly publications: readonly Publication[],
    private readonly senderOf: (publication: Publication) => DoorName | undefined,
  ) {
    const lane = (door: DoorName): HTMLElement => {
      const row = document.createElement("div");
      row.className = "lane";
      row.dataset["door"] = door;
      const name = document.createElement("span");
      name.className = "lane-name";
      name.textContent = COPY[door].name;
      const line = document.createElement("div");
      line.className = "line";
      row.append(name, line);
      root.append(row);
      return line;
    };
    this.lanes = { socketio: lane("socketio"), websocket: lane("websocket"), sse: lane("sse") };
    const foot = document.createElement("div");
    foot.className = "lane ruler";
    this.ruler = document.createElement("div");
    this.ruler.className = "line";
    foot.append(document.createElement("span"), this.ruler);
    root.append(foot);
    new ResizeObserver(() => {
      const places = Math.max(8, Math.floor(this.ruler.clientWidth / STEP));
      if (places === this.places) return;
      this.places = places;
      this.draw();
    }).observe(this.ruler);
  }

  setState(door: DoorName, state: DoorState): void {
    const lane = this.lanes[door].parentElement;
    if (lane !== null) lane.dataset["state"] = state;
  }

  /** Redraw before the next frame. */
  update(): void {
    if (this.due !== 0) return;
    this.due = requestAnimationFrame(() => {
      this.due = 0;
      this.draw();
    });
  }

  private draw(): void {
    const shown = this.publications.slice(-this.places);
    for (const door of DOORS) {
      this.lanes[door].replaceChildren(
        ...shown.map((publication) => {
          const sender = this.senderOf(publication);
          const cell = document.createElement("i");
          cell.className = publication.marks[door];
          cell.dataset["sender"] = sender ?? "other";
          if (sender === door) cell.classList.add("sent");
          return cell;
        }),
      );
    }
    const first = shown[0]?.number ?? 1;
    this.ruler.replaceChildren(
      ...Array.from({ length: this.places }, (_, place) => {
        const tick = document.createElement("i");
        const number = first + place;
        if (number % 5 === 0) {
          tick.className = "major";
          if (place < shown.length) tick.textContent = String(number);
        }
        return tick;
      }),
    );
    this.root.setAttribute("aria-label", this.describe());
  }

  private describe(): string {
    const last = this.publications.at(-1);
    if (last === undefined) return "No message yet.";
    const doors = DOORS.map((door) => `${COPY[door].name}: ${SPOKEN[last.marks[door]]}`);
    return `${this.publications.length} messages so far. The latest: ${doors.join(", ")}.`;
  }
}
