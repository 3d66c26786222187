// One order over three doors: which door received which publication, and how. Without DOM.
import { DOORS, type DoorName } from "./door";

/**
 * The state of a publication at a door: not yet received; received live; missed while the door
 * was away; missed and caught up; lost (the server sent a gap).
 */
export type Mark = "awaited" | "live" | "missed" | "caught-up" | "lost";

export interface Publication {
  readonly cursor: string;
  /** Its number on this page, from 1. */
  readonly number: number;
  readonly from: string;
  readonly content: string;
  readonly marks: Record<DoorName, Mark>;
}

export interface Heard {
  publication: Publication;
  mark: "live" | "caught-up";
  /** Whether no door had received it before. */
  isNew: boolean;
}

interface DoorRecord {
  away: boolean;
  /** The last publication received, if it is still remembered. */
  last: Publication | undefined;
  /** Every cursor received, to notice duplicates. */
  readonly cursors: Set<string>;
  /** While true, arrivals are a replay that no other door can confirm. */
  replaying: boolean;
  doubled: number;
  misplaced: number;
}

// How many publications are remembered.
const MEMORY = 1_000;

export class Ledger {
  /** In the server's order, oldest first. */
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

  /** The door is disconnected; it misses what others receive from now on. */
  leave(door: DoorName): Publication[] {
    this.records[door].away = true;
    this.records[door].replaying = false;
    return this.remark(door, "awaited", "missed");
  }

  /** The door is back, and its replay or a new session begins. */
  enter(door: DoorName, recovered: boolean): void {
    this.records[door].away = false;
    this.records[door].replaying = recovered;
  }

  /** The replay is over: nothing arrived for a while. */
  settle(door: DoorName): void {
    this.records[door].replaying = false;
  }

  /** The server cannot replay what the door missed. Returns the lost publications. */
  gap(door: DoorName): Publication[] {
    this.records[door].replaying = false;
    this.records[door].last = undefined;
    return this.remark(door, "missed", "lost");
  }

  /** Return how many publications the door has missed, as far as the other doors know. */
  missed(door: DoorName): number {
    return this.publications.filter(({ marks }) => marks[door] === "missed").length;
  }

  doubled(door: DoorName): number {
    return this.records[door].doubled;
  }

  misplaced(door: DoorName): number {
    return this.records[door].misplaced;
  }

  /** Record that a door received a publication; returns undefined for a duplicate. */
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
    // No other door was connected then: trust this door's replay.
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
    // A door receives in order: a publication new to all belongs right after the last one that this
    // door received, even if another door is ahead.
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
