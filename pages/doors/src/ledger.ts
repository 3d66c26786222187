// One order over three doors: which door heard which publication, and how. Knows no DOM.
import { DOORS, type DoorName } from "./door";

/**
 * How a door stands to a publication: not yet heard; heard as it happened; missed while the door
 * was away; missed and caught up; missed for good (the server told of a gap).
 */
export type Mark = "awaited" | "live" | "missed" | "caught-up" | "lost";

export interface Publication {
  readonly cursor: string;
  /** Counts from 1 on this page. */
  readonly number: number;
  readonly from: string;
  readonly content: string;
  readonly marks: Record<DoorName, Mark>;
}

export interface Heard {
  publication: Publication;
  mark: "live" | "caught-up";
  /** No door had heard it before. */
  isNew: boolean;
}

interface DoorRecord {
  away: boolean;
  /** The last publication heard, if it is still remembered. */
  last: Publication | undefined;
  /** Every cursor heard, to notice one that comes twice. */
  readonly cursors: Set<string>;
  /** While true, what comes is a replay that no other door can vouch for. */
  replaying: boolean;
  doubled: number;
  misplaced: number;
}

// Publications remembered. A hub's history holds 1,000 by default.
const MEMORY = 1_000;

export class Ledger {
  /** As the server ordered them, oldest first. */
  readonly publications: Publication[] = [];
  private readonly byCursor = new Map<string, Publication>();
  private readonly records: Record<DoorName, DoorRecord>;
  private count = 0;

  constructor() {
    const record = (): DoorRecord => ({
      away: true,
      last: undefined,
      cursors: new Set(),
      replaying: false,
      doubled: 0,
      misplaced: 0,
    });
    this.records = { socketio: record(), websocket: record(), sse: record() };
  }

  /** The door is cut or lost; what others hear from now on, it misses. */
  leave(door: DoorName): Publication[] {
    this.records[door].away = true;
    this.records[door].replaying = false;
    return this.remark(door, "awaited", "missed");
  }

  /** The door is back, and its replay begins (or a fresh session does). */
  enter(door: DoorName, recovered: boolean): void {
    this.records[door].away = false;
    this.records[door].replaying = recovered;
  }

  /** The replay is over: nothing came for a while. */
  settle(door: DoorName): void {
    this.records[door].replaying = false;
  }

  /** The server cannot replay what the door missed. Returns what is lost to it. */
  gap(door: DoorName): Publication[] {
    this.records[door].replaying = false;
    this.records[door].last = undefined;
    return this.remark(door, "missed", "lost");
  }

  /** How many publications went by that the door has not heard, so far as the others know. */
  missed(door: DoorName): number {
    return this.publications.filter(({ marks }) => marks[door] === "missed").length;
  }

  doubled(door: DoorName): number {
    return this.records[door].doubled;
  }

  misplaced(door: DoorName): number {
    return this.records[door].misplaced;
  }

  /** Record that a door heard a publication; undefined when it had heard it before. */
  hear(door: DoorName, cursor: string, from: string, content: string): Heard | undefined {
    const record = this.records[door];
    if (record.cursors.has(cursor)) {
      record.doubled += 1;
      return undefined;
    }
    record.cursors.add(cursor);

    let publication = this.byCursor.get(cursor);
    const isNew = publication === undefined;
    const after = record.last === undefined ? -1 : this.publications.indexOf(record.last);
    if (publication === undefined) {
      publication = this.insert(door, cursor, from, content, after);
    } else if (after !== -1 && this.publications.indexOf(publication) < after) {
      record.misplaced += 1;
    }

    const mark = this.isCaughtUp(door, publication, isNew) ? "caught-up" : "live";
    publication.marks[door] = mark;
    record.last = publication;
    this.forget();
    return { publication, mark, isNew };
  }

  private isCaughtUp(door: DoorName, publication: Publication, isNew: boolean): boolean {
    if (publication.marks[door] === "missed") return true;
    // Nobody on this page was there to hear it: take the door's own replay for it.
    const { replaying } = this.records[door];
    const others = DOORS.filter((other) => other !== door);
    return replaying && isNew && others.every((other) => this.records[other].away);
  }

  private insert(
    door: DoorName,
    cursor: string,
    from: string,
    content: string,
    after: number,
  ): Publication {
    const mark = (name: DoorName): Mark => (this.records[name].away ? "missed" : "awaited");
    const publication: Publication = {
      cursor,
      number: ++this.count,
      from,
      content,
      marks: { socketio: mark("socketio"), websocket: mark("websocket"), sse: mark("sse") },
    };
    // A door hears in order: what is new to all belongs right behind what this door heard last,
    // even if another door has run ahead.
    const { last } = this.records[door];
    const at = last === undefined || after === -1 ? this.publications.length : after + 1;
    this.publications.splice(at, 0, publication);
    this.byCursor.set(cursor, publication);
    return publication;
  }

  private remark(door: DoorName, before: Mark, after: Mark): Publication[] {
    const changed = this.publications.filter(({ marks }) => marks[door] === before);
    for (const { marks } of changed) marks[door] = after;
    return changed;
  }

  private forget(): void {
    while (this.publications.length > MEMORY) {
      const oldest = this.publications.shift();
      if (oldest !== undefined) this.byCursor.delete(oldest.cursor);
    }
    for (const { cursors } of Object.values(this.records)) {
      // A set keeps the order of insertion: the first is the oldest.
      for (const cursor of cursors) {
        if (cursors.size <= 2 * MEMORY) break;
        cursors.delete(cursor);
      }
    }
  }
}
