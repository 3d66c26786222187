// The state of the page, and how each action changes it. Pure: no socket, no clock.
import type { Failure, Message, RoomInfo, Typing, User, Welcome } from "./protocol";

/** Milliseconds without a keystroke after which somebody no longer types. */
export const TYPING_TIME = 3_000;
/** What a room shows at most: older entries go. */
const ENTRIES = 500;

export type Link =
  | { state: "connecting" }
  | { state: "connected" }
  // Lost; the client reconnects by itself.
  | { state: "lost"; attempt: number; reason: string }
  // The server refused; only the user can retry.
  | { state: "refused"; reason: string };

export type Delivery =
  | { state: "received" }
  | { state: "sending" }
  // Milliseconds since 1970: when it is sent again.
  | { state: "slowed"; until: number }
  | { state: "failed"; reason: string };

export type Entry =
  | { kind: "message"; key: string; message: Message; delivery: Delivery }
  // Who joined and left, in order, since the last message.
  | { kind: "presence"; key: string; joined: User[]; left: User[] }
  // Something may be missing here.
  | { kind: "gap"; key: string };

export interface Room extends RoomInfo {
  state: "joining" | "joined" | "failed";
  problem: string;
  // By id.
  users: ReadonlyMap<string, User>;
  // Whether the next list of users shows who came and went since this one.
  followed: boolean;
  entries: readonly Entry[];
  // By user id; valid until then, in milliseconds since 1970.
  typing: ReadonlyMap<string, { user: User; until: number }>;
  unread: number;
}

export interface State {
  link: Link;
  me: User | null;
  // Why the name was not accepted, or "".
  nameProblem: string;
  registering: boolean;
  nameLength: number;
  contentLength: number;
  rooms: readonly RoomInfo[];
  // The rooms this tab is in, by name.
  joined: Readonly<Record<string, Room>>;
  current: string;
}

export const initial: State = {
  link: { state: "connecting" },
  me: null,
  nameProblem: "",
  registering: false,
  nameLength: 40,
  contentLength: 4_000,
  rooms: [],
  joined: {},
  current: "",
};

export type Action =
  | { type: "link"; link: Link }
  | { type: "registering" }
  | { type: "registered"; welcome: Welcome }
  | { type: "not registered"; problem: string }
  | { type: "signed out" }
  | { type: "opened"; room: string }
  | { type: "joining"; room: string }
  | { type: "history"; room: string; messages: Message[] }
  | { type: "not joined"; room: string; problem: string }
  | { type: "left room"; room: string }
  // The next list of users may be a different one for other reasons.
  | { type: "not followed" }
  | { type: "users"; room: string; users: User[] }
  | { type: "typing"; typing: Typing; now: number }
  | { type: "tick"; now: number }
  | { type: "message"; message: Message; seen: boolean }
  | { type: "draft"; message: Message }
  | { type: "delivery"; room: string; id: string; delivery: Delivery }
  | { type: "withdrawn"; room: string; id: string };

export function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "link":
      return { ...state, link: action.link };
    case "registering":
      return { ...state, registering: true, nameProblem: "" };
    case "registered": {
      const { user, rooms, nameLength, contentLength } = action.welcome;
      return { ...state, me: user, rooms, nameLength, contentLength, registering: false, nameProblem: "" };
    }
    case "not registered":
      return { ...state, me: null, registering: false, nameProblem: action.problem };
    case "signed out":
      return { ...initial, link: state.link };
    case "opened":
      return inRoom({ ...state, current: action.room }, action.room, (room) => ({ ...room, unread: 0 }));
    case "joining": {
      const info = state.rooms.find(({ name }) => name === action.room);
      if (info === undefined) return state;
      const room = state.joined[action.room];
      const joining: Room = { ...(room ?? empty(info)), ...info, state: "joining", problem: "" };
      return { ...state, joined: { ...state.joined, [action.room]: joining } };
    }
    case "not joined":
      return inRoom(state, action.room, (room) => ({ ...room, state: "failed", problem: action.problem }));
    case "left room": {
      const { [action.room]: _, ...joined } = state.joined;
      return { ...state, joined };
    }
    case "history":
      return inRoom(state, action.room, (room) => ({
        ...room,
        state: "joined",
        entries: merge(room.entries, action.messages),
      }));
    case "not followed": {
      const joined = Object.entries(state.joined).map(([name, room]) => [name, { ...room, followed: false }]);
      return { ...state, joined: Object.fromEntries(joined) };
    }
    case "users": {
      const users = new Map(action.users.map((user) => [user.id, user]));
      // The server may have reassigned the colour during a long absence.
      const me = users.get(state.me?.id ?? "") ?? state.me;
      return inRoom({ ...state, me }, action.room, (room) => {
        const before = room.followed ? room.users : users;
        const came = [...users.values()].filter(({ id }) => !before.has(id) && id !== me?.id);
        const went = [...before.values()].filter(({ id }) => !users.has(id) && id !== me?.id);
        const entries = came.reduce((entries, user) => note(entries, user, "joined"), room.entries);
        return {
          ...room,
          users,
          followed: true,
          typing: went.reduce((typing, { id }) => without(typing, id), room.typing),
          entries: went.reduce((entries, user) => note(entries, user, "left"), entries),
        };
      });
    }
    case "typing": {
      const { user, typing } = action.typing;
      return inRoom(state, action.typing.room, (room) => ({
        ...room,
        typing: typing
          ? new Map(room.typing).set(user.id, { user, until: action.now + TYPING_TIME })
          : without(room.typing, user.id),
      }));
    }
    case "tick": {
      const joined = Object.entries(state.joined).map(([name, room]) => {
        const still = [...room.typing].filter(([, { until }]) => until > action.now);
        return [name, still.length === room.typing.size ? room : { ...room, typing: new Map(still) }];
      });
      return { ...state, joined: Object.fromEntries(joined) };
    }
    case "message": {
      const { message, seen } = action;
      return inRoom(state, message.room, (room) => {
        const entries = receive(room.entries, message);
        const counts = !seen && entries.length !== room.entries.length && message.user.id !== state.me?.id;
        return {
          ...room,
          entries,
          typing: without(room.typing, message.user.id),
          unread: room.unread + (counts ? 1 : 0),
        };
      });
    }
    case "draft":
      return inRoom(state, action.message.room, (room) => ({
        ...room,
        entries: trim([...room.entries, entryOf(action.message, { state: "sending" })]),
      }));
    case "delivery":
      return inRoom(state, action.room, (room) => ({
        ...room,
        entries: room.entries.map((entry) =>
          entry.kind === "message" &&
          entry.message.id === action.id &&
          entry.message.user.id === state.me?.id &&
          entry.delivery.state !== "received"
            ? { ...entry, delivery: action.delivery }
            : entry,
        ),
      }));
    case "withdrawn":
      return inRoom(state, action.room, (room) => ({
        ...room,
        entries: room.entries.filter(
          (entry) =>
            entry.kind !== "message" || entry.message.id !== action.id || entry.delivery.state === "received",
        ),
      }));
  }
}

/** Milliseconds since 1970 when the next typing notice ends; undefined when there is none. */
export function nextTick(state: State): number | undefined {
  const ends = Object.values(state.joined).flatMap((room) =>
    Array.from(room.typing.values(), ({ until }) => until),
  );
  return ends.length > 0 ? Math.min(...ends) : undefined;
}

/** Explain a failure to the author of the message. */
export function explain(failure: Failure): string {
  switch (failure.code) {
    case "name_taken":
      return "Somebody here already has this name. Choose another.";
    case "rate_limited":
      return "You are sending too fast. Wait a moment, then try again.";
    case "invalid_message":
      return `The server does not accept this. ${failure.reason ?? ""}`.trim();
    default:
      return `${failure.error}.`;
  }
}

function empty(info: RoomInfo): Room {
  return {
    ...info,
    state: "joining",
    problem: "",
    users: new Map(),
    followed: false,
    entries: [],
    typing: new Map(),
    unread: 0,
  };
}

function inRoom(state: State, name: string, change: (room: Room) => Room): State {
  const room = state.joined[name];
  return room === undefined ? state : { ...state, joined: { ...state.joined, [name]: change(room) } };
}

function without<V>(map: ReadonlyMap<string, V>, key: string): ReadonlyMap<string, V> {
  if (!map.has(key)) return map;
  const rest = new Map(map);
  rest.delete(key);
  return rest;
}

function keyOf(message: Message): string {
  return `${message.user.id}/${message.id}`;
}

function entryOf(message: Message, delivery: Delivery): Entry {
  return { kind: "message", key: keyOf(message), message, delivery };
}

function trim(entries: Entry[]): Entry[] {
  return entries.length > ENTRIES ? entries.slice(-ENTRIES) : entries;
}

/** Those not yet with the server stay last: their place is not known. */
function isPending(entry: Entry): boolean {
  return entry.kind === "message" && entry.delivery.state !== "received";
}

function receive(entries: readonly Entry[], message: Message): readonly Entry[] {
  const key = keyOf(message);
  const known = entries.find((entry) => entry.key === key);
  // Add a message only once, however often it arrives.
  if (known !== undefined && !isPending(known)) return entries;
  const others = entries.filter((entry) => entry !== known);
  const at = others.findIndex(isPending);
  const entry = entryOf(message, { state: "received" });
  return trim(at < 0 ? [...others, entry] : [...others.slice(0, at), entry, ...others.slice(at)]);
}

/** Adds what a room remembers to what is on the page already. */
function merge(entries: readonly Entry[], messages: Message[]): readonly Entry[] {
  const received = new Set(entries.filter((entry) => !isPending(entry)).map((entry) => entry.key));
  const fresh = messages.filter((message) => !received.has(keyOf(message)));
  // No message in common: there may be a gap between them.
  if (received.size > 0 && fresh.length === messages.length) {
    const last = entries.findLastIndex((entry) => !isPending(entry));
    if (entries[last]?.kind !== "gap") {
      entries = [
        ...entries.slice(0, last + 1),
        { kind: "gap", key: `gap after ${entries[last]?.key}` },
        ...entries.slice(last + 1),
      ];
    }
  }
  return fresh.reduce(receive, entries);
}

function note(entries: readonly Entry[], user: User, what: "joined" | "left"): readonly Entry[] {
  const at = entries.findLastIndex((entry) => !isPending(entry));
  const last = entries[at];
  const rest = entries.slice(at + 1);
  if (last?.kind !== "presence") {
    const entry: Entry = {
      kind: "presence",
      key: `presence after ${last?.key ?? "nothing"}`,
      joined: what === "joined" ? [user] : [],
      left: what === "left" ? [user] : [],
    };
    return trim([...entries.slice(0, at + 1), entry, ...rest]);
  }
  // Joining and leaving again cancel out.
  const opposite = what === "joined" ? "left" : "joined";
  const undone = last[opposite].some(({ id }) => id === user.id);
  const changed: Entry = undone
    ? { ...last, [opposite]: last[opposite].filter(({ id }) => id !== user.id) }
    : { ...last, [what]: [...last[what], user] };
  const kept = changed.joined.length + changed.left.length > 0 ? [changed] : [];
  return [...entries.slice(0, at), ...kept, ...rest];
}
