// The chat behind the page: the official Socket.IO client, the messages still to be sent, and the
// state that the components show.
import { watchPresence } from "crossband/presence";
import { type Socket, io } from "socket.io-client";

import {
  type ClientToServer,
  type Failure,
  type Looks,
  type Message,
  type Receipt,
  type ServerToClient,
  type Welcome,
  failed,
} from "./protocol";
import { type Action, type State, explain, initial, nextTick, reduce } from "./state";

// Milliseconds.
const ANSWER_TIME = 10_000;
// How often to repeat that the user is typing; a notice is valid for three seconds.
const TYPING_EVERY = 1_500;
// Least time between two renders, so that a thousand arrivals do not cause a thousand renders.
const FRAME = 40;

const STORAGE = "crossband-chat";

/** What is kept for the next visit, and for the other tabs. */
interface Identity {
  name: string;
  // Makes all tabs of this browser the same user.
  key: string;
  rooms: string[];
}

export class Chat {
  private state: State = initial;
  private shown: State = initial;
  private readonly watchers = new Set<() => void>();
  private drawing: ReturnType<typeof setTimeout> | 0 = 0;
  private ticking: ReturnType<typeof setTimeout> | undefined;

  private readonly socket: Socket<ServerToClient, ClientToServer>;
  private identity: Identity | null = recall();
  // Rooms this connection is in; none after a reconnect without recovery.
  private readonly entered = new Set<string>();
  // Stops following who is in a room, by its name.
  private readonly watched = new Map<string, () => void>();
  private registered = false;
  // Messages not yet acknowledged, oldest first.
  private readonly outbox: Message[] = [];
  private sending = false;
  private slowed: ReturnType<typeof setTimeout> | 0 = 0;
  // When the last typing notice was sent, by room; milliseconds since 1970.
  private readonly keystrokes = new Map<string, number>();

  /** `path` is where the server has its Socket.IO door; null where it has none. */
  constructor(page: URL, private readonly path: string | null) {
    this.socket = io(`${page.origin}/chat`, {
      ...(path !== null && { path }),
      autoConnect: false,
      reconnectionDelay: 500,
      reconnectionDelayMax: 5_000,
    });
    this.listen();
    const room = decodeURIComponent(page.hash.slice(1));
    this.state = { ...this.state, current: room, registering: this.identity !== null };
    this.shown = this.state;
    this.reconnect();
  }

  // For useSyncExternalStore.

  readonly watch = (watcher: () => void): (() => void) => {
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  };

  readonly snapshot = (): State => this.shown;

  /** The name this browser was here by. */
  get name(): string {
    return this.identity?.name ?? "";
  }

  // What the user does.

  signIn(name: string): void {
    // Another name is another user: the old one may still be here, in another tab.
    const known = this.identity?.name === name ? this.identity : null;
    this.identity = known ?? { name, key: randomId(), rooms: this.identity?.rooms ?? [] };
    void this.register();
  }

  signOut(): void {
    try {
      localStorage.removeItem(STORAGE);
    } catch {
      // Then nothing is stored.
    }
    this.identity = null;
    this.outbox.length = 0;
    this.forgetConnection();
    this.dispatch({ type: "signed out" });
    this.reconnect();
  }

  openRoom(name: string): void {
    history.replaceState(null, "", `#${encodeURIComponent(name)}`);
    this.dispatch({ type: "opened", room: name });
    if (this.state.joined[name]?.state !== "joined") void this.join(name);
  }

  async leaveRoom(name: string): Promise<void> {
    const next = Object.keys(this.state.joined).find((other) => other !== name);
    if (next === undefined) return;
    this.entered.delete(name);
    this.unwatch(name);
    this.dispatch({ type: "left room", room: name });
    this.openRoom(next);
    this.remember();
    if (this.registered) await this.ask((socket) => socket.emitWithAck("room:leave", { room: name }));
  }

  send(content: string): void {
    const { me, current } = this.state;
    if (me === null) return;
    const time = new Date().toISOString();
    const message: Message = { id: randomId(), room: current, user: me, content: content.trim(), time };
    this.keystrokes.delete(current);
    this.outbox.push(message);
    this.dispatch({ type: "draft", message });
    void this.empty();
  }

  /** Takes back a message that could not be sent. */
  withdraw(message: Message): void {
    this.dispatch({ type: "withdrawn", room: message.room, id: message.id });
  }

  /** Tells the others that the user is typing, or has stopped. */
  typing(typing: boolean): void {
    const room = this.state.current;
    const last = this.keystrokes.get(room);
    const now = Date.now();
    if (typing ? last !== undefined && now - last < TYPING_EVERY : last === undefined) return;
    if (typing) this.keystrokes.set(room, now);
    else this.keystrokes.delete(room);
    // Volatile: pointless to send later.
    if (this.registered) this.socket.volatile.emit("chat:typing", { room, typing });
  }

  /** Tries to connect now, instead of when its turn comes. */
  reconnect(): void {
    if (this.path === null) {
      const reason = "The Socket.IO door is switched off on this server.";
      this.dispatch({ type: "link", link: { state: "refused", reason } });
      return;
    }
    this.socket.disconnect().connect();
  }

  /** The user sees the current room again. */
  looked(): void {
    if (this.state.joined[this.state.current]?.unread) {
      this.dispatch({ type: "opened", room: this.state.current });
    }
  }

  // The connection.

  private listen(): void {
    const { socket } = this;
    const manager = socket.io;
    let shutdown = "";

    socket.on("connect", () => {
      shutdown = "";
      this.dispatch({ type: "link", link: { state: "connected" } });
      // Recovered: the server knows this client, and missed events follow by themselves.
      if (!socket.recovered) this.forgetConnection();
      if (!this.registered) void this.register();
      else void this.enter();
    });
    socket.on("disconnect", (reason) => {
      if (reason === "io client disconnect") return;
      if (socket.active) this.dispatch({ type: "link", link: { state: "lost", attempt: 0, reason: shutdown } });
      else this.dispatch({ type: "link", link: { state: "refused", reason: "The server ended the connection." } });
    });
    socket.on("connect_error", (error) => {
      // The client retries an unreachable server; this is a server that refused.
      if (!socket.active) this.dispatch({ type: "link", link: { state: "refused", reason: error.message } });
    });
    manager.on("reconnect_attempt", (attempt) => {
      this.dispatch({ type: "link", link: { state: "lost", attempt, reason: shutdown } });
    });
    socket.on("server:shutdown", () => {
      shutdown = "The server is shutting down.";
    });

    socket.on("user:typing", (typing) => this.dispatch({ type: "typing", typing, now: Date.now() }));
    socket.on("chat:message", (message) => {
      const seen = message.room === this.state.current && document.visibilityState === "visible";
      this.dispatch({ type: "message", message, seen });
    });

    // Once online again, do not wait for the next attempt.
    addEventListener("online", () => {
      if (this.state.link.state === "lost" && !socket.connected) this.reconnect();
    });
  }

  private forgetConnection(): void {
    this.registered = false;
    this.entered.clear();
    for (const room of [...this.watched.keys()]) this.unwatch(room);
    this.dispatch({ type: "not followed" });
  }

  /** Follows who is in a room, for as long as this connection or one that resumes it is in the room. */
  private follow(room: string): void {
    if (this.watched.has(room)) return;
    const stop = watchPresence<Looks>(this.socket, room, ({ members, isReady }) => {
      const users = members.map(({ id, info }) => ({ id, ...info }));
      if (isReady) this.dispatch({ type: "users", room, users });
    });
    this.watched.set(room, stop);
  }

  private unwatch(room: string): void {
    this.watched.get(room)?.();
    this.watched.delete(room);
  }

  private async register(): Promise<void> {
    const { identity } = this;
    if (identity === null) return;
    this.dispatch({ type: "registering" });
    const { name, key } = identity;
    const answer = await this.ask((socket) => socket.emitWithAck("user:register", { name, key }));
    // No longer wanted.
    if (identity !== this.identity) return;
    if (answer === undefined) {
      // If this connection is lost, the next one asks again.
      if (this.socket.connected) await this.register();
      return;
    }
    if (failed(answer)) {
      this.dispatch({ type: "not registered", problem: explain(answer) });
      return;
    }
    this.registered = true;
    this.welcomed(answer, identity);
    await this.enter();
  }

  /** Joins what this connection is not in yet, then sends what waits. */
  private async enter(): Promise<void> {
    const rooms = Object.keys(this.state.joined).filter((room) => !this.entered.has(room));
    await Promise.all(rooms.map((room) => this.join(room)));
    await this.empty();
  }

  private welcomed(welcome: Welcome, identity: Identity): void {
    this.dispatch({ type: "registered", welcome });
    identity.name = welcome.user.name;
    const names = welcome.rooms.map(({ name }) => name);
    const wanted = [...Object.keys(this.state.joined), ...identity.rooms, this.state.current];
    const rooms = names.filter((name) => wanted.includes(name));
    const current = names.includes(this.state.current) ? this.state.current : (rooms[0] ?? names[0] ?? "");
    for (const room of new Set([...rooms, current])) this.dispatch({ type: "joining", room });
    this.dispatch({ type: "opened", room: current });
    this.remember();
  }

  private async join(room: string): Promise<void> {
    this.dispatch({ type: "joining", room });
    this.remember();
    if (!this.registered || !this.socket.connected) return;
    const answer = await this.ask((socket) => socket.emitWithAck("room:join", { room }));
    if (this.state.joined[room] === undefined) return;
    if (answer === undefined) {
      if (this.socket.connected) await this.join(room);
      return;
    }
    if (failed(answer)) {
      if (answer.code === "rate_limited") {
        setTimeout(() => void this.join(room), 1_000 * (answer.retryAfter ?? 1));
      } else {
        this.dispatch({ type: "not joined", room, problem: explain(answer) });
      }
      return;
    }
    this.entered.add(room);
    this.follow(room);
    this.dispatch({ type: "history", room, messages: answer.messages });
    void this.empty();
  }

  /** Sends what was written, one after another, each until it is acknowledged. */
  private async empty(): Promise<void> {
    if (this.sending) return;
    this.sending = true;
    try {
      for (let draft = this.outbox[0]; draft !== undefined; draft = this.outbox[0]) {
        const { room, content, id } = draft;
        if (!this.socket.connected || !this.registered || !this.entered.has(room) || this.slowed) return;
        this.dispatch({ type: "delivery", room, id, delivery: { state: "sending" } });
        const answer = await this.ask((socket) => socket.emitWithAck("chat:message", { room, content, id }));
        // It may have arrived: send it again, and the server recognises it by its id.
        if (answer === undefined || this.outbox[0] !== draft) continue;
        if (!failed(answer)) this.delivered(draft, answer);
        else if (!this.postponed(draft, answer)) return;
      }
    } finally {
      this.sending = false;
    }
  }

  private delivered(draft: Message, { id, time }: Receipt): void {
    this.outbox.shift();
    this.dispatch({ type: "message", message: { ...draft, id, time }, seen: true });
  }

  /** Deals with a message that was not accepted; false when nothing can be sent for now. */
  private postponed({ room, id }: Message, failure: Failure): boolean {
    if (failure.code === "rate_limited") {
      const wait = 1_000 * (failure.retryAfter ?? 1);
      this.dispatch({ type: "delivery", room, id, delivery: { state: "slowed", until: Date.now() + wait } });
      this.slowed = setTimeout(() => {
        this.slowed = 0;
        void this.empty();
      }, wait);
      return false;
    }
    if (failure.code === "not_registered" || failure.code === "not_in_room") {
      // The server no longer knows this client.
      this.forgetConnection();
      void this.register();
      return false;
    }
    this.outbox.shift();
    this.dispatch({ type: "delivery", room, id, delivery: { state: "failed", reason: explain(failure) } });
    return true;
  }

  /** Returns the answer, or undefined when the connection was lost or too slow before it came. */
  private async ask<T>(
    question: (socket: ReturnType<Socket<ServerToClient, ClientToServer>["timeout"]>) => Promise<T>,
  ): Promise<T | undefined> {
    if (!this.socket.connected) return undefined;
    try {
      return await question(this.socket.timeout(ANSWER_TIME));
    } catch {
      return undefined;
    }
  }

  private remember(): void {
    if (this.identity === null) return;
    this.identity.rooms = Object.keys(this.state.joined);
    try {
      localStorage.setItem(STORAGE, JSON.stringify(this.identity));
    } catch {
      // Storage is unavailable or full: then each tab is a separate user.
    }
  }

  // The state.

  private dispatch(action: Action): void {
    this.state = reduce(this.state, action);
    if (this.drawing === 0) {
      this.draw();
      this.drawing = setTimeout(() => {
        this.drawing = 0;
        if (this.shown !== this.state) this.draw();
      }, FRAME);
    }
    const next = nextTick(this.state);
    clearTimeout(this.ticking);
    if (next !== undefined) {
      this.ticking = setTimeout(
        () => this.dispatch({ type: "tick", now: Date.now() }),
        Math.max(next - Date.now(), 0) + 1,
      );
    }
  }

  private draw(): void {
    this.shown = this.state;
    for (const watcher of this.watchers) watcher();
  }
}

function recall(): Identity | null {
  try {
    const kept: unknown = JSON.parse(localStorage.getItem(STORAGE) ?? "null");
    if (typeof kept !== "object" || kept === null) return null;
    const { name, key, rooms } = kept as Partial<Identity>;
    if (typeof name !== "string" || typeof key !== "string" || !Array.isArray(rooms)) return null;
    return { name, key, rooms };
  } catch {
    // Written by another program, or storage is unavailable.
    return null;
  }
}

/** A key or an id of 128 random bits. */
function randomId(): string {
  // Not crypto.randomUUID(): browsers hide it on plain http other than localhost.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
