// The client: one session, over one door at a time. It decides when and over which door to
// connect, keeps the cursor, and matches acknowledgements. The wire formats are in websocket.ts and sse.ts.
import { openEventStream } from "./sse.js";
import {
  type Answer,
  type Args,
  type ClientEvents,
  CrossbandError,
  type Connected,
  type DefaultEvents,
  type End,
  type EventName,
  type EventsMap,
  type Gap,
  type Link,
  type LinkListener,
  type Listener,
  type Memory,
  type Message,
  type Options,
  type State,
  type TransportName,
} from "./types.js";
import { backoff, onWake } from "./wake.js";
import { openWebSocket } from "./websocket.js";

/** How long a connection must last before the next wait starts short again. */
const STABLE = 5_000;
/** How long a connection may stay silent after a probe. */
const PROBE_TIME = 10_000;
/** How many of the last cursors are remembered, so that no event is delivered twice. */
const SEEN = 1_000;

type AnyListener = (event: string, data: any) => unknown;
type Handler = (data: any, ack: any) => unknown;

interface Pending {
  resolve(answer: any): void;
  reject(error: CrossbandError): void;
  timer: unknown;
}

export class Client<Incoming extends EventsMap = DefaultEvents, Outgoing extends EventsMap = DefaultEvents> {
  /** The client's public id; undefined until the first welcome. */
  id: string | undefined;
  /** The cursor of the last event; undefined until there is one. */
  cursor: string | undefined;
  /** Whether the last connection resumed the previous one. */
  recovered = false;
  /** The door of the current or last connection. */
  transport: TransportName | undefined;
  state: State = "closed";

  readonly #url: string | URL;
  /** `url`, resolved on connecting: a server that renders the page has no location. */
  #base!: URL;
  readonly #options: Options;
  readonly #listeners = new Map<string, Set<Handler>>();
  readonly #any = new Set<AnyListener>();
  readonly #pending = new Map<number, Pending>();
  readonly #joined = new Set<string>();
  readonly #seen = new Set<string>();
  #buffer: { text: string; message: Message }[] = [];
  #lastId = 0;
  /** The client's secret. */
  #session: string | undefined;
  #link: Link | undefined;
  /** Counts attempts, so that callbacks of an earlier one notice that they are stale. */
  #generation = 0;
  /** Doors to try before the next wait. */
  #round: TransportName[] = [];
  /** Whether the preferred door has worked, and has not failed since. */
  #direct = false;
  /** How many times in a row the client used another door. */
  #fallbacks = 0;
  #attempt = 0;
  #welcomedAt = 0;
  #heardAt = 0;
  /** Whether the token was refused once; the second refusal is final. */
  #refused = false;
  /** Times the next attempt, the welcome, then silence. */
  #timer: unknown;
  #stopListening: (() => void) | undefined;

  constructor(url: string | URL, options: Options = {}) {
    this.#url = url;
    this.#options = options;
    if (options.autoConnect ?? true) this.connect();
  }

  get connected(): boolean {
    return this.state === "connected";
  }

  /** Connect, and stay connected until `close`. */
  connect(): this {
    if (this.#stopListening) return this;
    this.#base = new URL(this.#url, globalThis.location?.href);
    this.#base.protocol = this.#base.protocol.replace("ws", "http");
    this.#round = this.#doors();
    const stopWaking = onWake({
      wake: () => this.#wake(),
      lost: () => this.#link && this.#lose("offline", "Offline"),
    });
    const stopKeeping = this.#keepSession();
    this.#stopListening = () => {
      stopWaking();
      stopKeeping();
    };
    this.#attempt = 0;
    this.#refused = false;
    this.#setState("connecting");
    void this.#open();
    return this;
  }

  /** Disconnect. `connect` resumes if the server still has the session. */
  close(): this {
    if (this.#stopListening) this.#stop(new CrossbandError("closed", "The client was closed"));
    return this;
  }

  /** Forget session and cursor: the next connection is a new client. */
  forget(): void {
    this.#session = this.cursor = undefined;
    this.#seen.clear();
    this.#remember("removeItem");
  }

  on<E extends EventName<ClientEvents>>(event: E, listener: ClientEvents[E]): this;
  on<E extends Exclude<EventName<Incoming>, keyof ClientEvents>>(event: E, listener: Listener<Incoming[E]>): this;
  on(event: string, listener: Handler): this {
    const listeners = this.#listeners.get(event) ?? new Set();
    this.#listeners.set(event, listeners.add(listener));
    return this;
  }

  once<E extends EventName<ClientEvents>>(event: E, listener: ClientEvents[E]): this;
  once<E extends Exclude<EventName<Incoming>, keyof ClientEvents>>(event: E, listener: Listener<Incoming[E]>): this;
  once(event: string, listener: Handler): this {
    const once: Handler & { of?: Handler } = (data, ack) => {
      this.#remove(event, once);
      return listener(data, ack);
    };
    once.of = listener;
    return (this.on as (event: string, listener: Handler) => this).call(this, event, once);
  }

  /** Remove a listener; without one, all listeners of the event. */
  off<E extends EventName<ClientEvents>>(event: E, listener?: ClientEvents[E]): this;
  off<E extends Exclude<EventName<Incoming>, keyof ClientEvents>>(event: E, listener?: Listener<Incoming[E]>): this;
  off(event: string, listener?: Handler): this {
    if (listener) this.#remove(event, listener);
    else this.#listeners.delete(event);
    return this;
  }

  #remove(event: string, listener: Handler): void {
    const listeners = this.#listeners.get(event);
    for (const each of listeners ?? []) {
      if (each === listener || (each as { of?: Handler }).of === listener) listeners!.delete(each);
    }
  }

  /** Listen for every event of the server; called before the event's own listeners. */
  onAny(listener: (event: EventName<Incoming>, data: any) => unknown): this {
    this.#any.add(listener as AnyListener);
    return this;
  }

  offAny(listener: (event: EventName<Incoming>, data: any) => unknown): this {
    this.#any.delete(listener as AnyListener);
    return this;
  }

  /**
   * Send an event; without a connection it is buffered. Returns false, without sending, if the
   * buffer is full.
   */
  emit<E extends EventName<Outgoing>>(event: E, ...args: Args<Outgoing[E]>): boolean {
    return this.#send({ ...named(event), ...payload(args) });
  }

  /**
   * Send an event and return the handler's answer.
   *
   * Rejects with a CrossbandError: the server's, or `timeout`, `disconnected` (the event may have
   * been handled), `buffer_full`.
   */
  emitWithAck<E extends EventName<Outgoing>>(event: E, ...args: Args<Outgoing[E]>): Promise<Answer<Outgoing[E]>> {
    return this.#ask(event, args);
  }

  /** Set how long to wait for the acknowledgement: `client.timeout(500).emitWithAck(…)`. */
  timeout(ms: number): Pick<Client<Incoming, Outgoing>, "emitWithAck"> {
    return { emitWithAck: (event, ...args) => this.#ask(event, args, ms) };
  }

  /** Join a room with the server's `room:join`, now and after every gap. */
  async join(room: string): Promise<any> {
    const answer = await this.#ask("room:join", [room]);
    this.#joined.add(room);
    return answer;
  }

  /** Leave a room with the server's `room:leave`. */
  leave(room: string): Promise<any> {
    this.#joined.delete(room);
    return this.#ask("room:leave", [room]);
  }

  // Out.

  #ask(event: string, args: readonly unknown[], ms = this.#options.ackTimeout ?? 10_000): Promise<any> {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      const timer = this.#setTimeout(() => {
        this.#buffer = this.#buffer.filter(({ message }) => message.id !== id);
        this.#settle(id)?.reject(new CrossbandError("timeout", `No answer to "${event}" within ${ms} ms`));
      }, ms);
      this.#pending.set(id, { resolve, reject, timer });
      if (!this.#send({ ...named(event), ...payload(args), id })) {
        this.#settle(id)?.reject(new CrossbandError("buffer_full", "Too many events wait"));
      }
    });
  }

  #settle(id: number | undefined): Pending | undefined {
    const pending = this.#pending.get(id!);
    this.#pending.delete(id!);
    if (pending) this.#clearTimeout(pending.timer);
    return pending;
  }

  #send(message: Message): boolean {
    // Encode now: the caller may change its objects later.
    const text = JSON.stringify(message);
    const limit = this.#options.bufferSize ?? 100;
    if (this.connected) return this.#link!.send(text, message);
    return this.#buffer.length < limit && this.#buffer.push({ text, message }) > 0;
  }

  // In.

  #receive(message: Message): void {
    const { type, data, id, offset } = message;
    switch (type) {
      case "welcome":
        this.#welcome(message);
        break;
      case "gap":
        this.cursor = offset ?? this.cursor;
        this.#fire("gap", { reason: message["reason"], offset: offset ?? null } as Gap);
        break;
      case "ack":
        this.#settle(id)?.resolve(data);
        break;
      case "error": {
        const { code, error, type: _, id: __, ...details } = message;
        const problem = new CrossbandError(String(code), String(error), details);
        const pending = this.#settle(id);
        if (pending) pending.reject(problem);
        else this.#fire("error", problem);
        break;
      }
      case "server:shutdown":
        this.#fire("shutdown", message["message"] as string);
        break;
      default:
        if (offset) {
          if (this.#seen.has(offset)) return;
          this.#seen.add(offset);
          if (this.#seen.size > SEEN) this.#seen.delete(this.#seen.values().next().value!);
          this.cursor = offset;
        }
        if (type === "token:expiring") void this.#refreshToken();
        this.#dispatch(message.event ?? type, data ?? null, id);
    }
  }

  #dispatch(event: string, data: unknown, id: number | undefined): void {
    for (const listener of this.#any) guard(() => listener(event, data));
    if (OWN.test(event)) return;
    const ack = (...answer: unknown[]): void => {
      if (id === undefined || !this.connected) return;
      const reply = { type: "ack", ...payload(answer), id };
      this.#link!.send(JSON.stringify(reply), reply);
      id = undefined;
    };
    for (const listener of [...(this.#listeners.get(event) ?? [])]) guard(() => listener(data, ack));
  }

  #fire<E extends EventName<ClientEvents>>(event: E, ...[value]: Parameters<ClientEvents[E]>): void {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) guard(() => listener(value, undefined));
  }

  // Connecting.

  async #open(): Promise<void> {
    const generation = ++this.#generation;
    const { token } = this.#options;
    if (this.#round.length === 0) this.#round = this.#doors();
    const transport = this.#round.shift()!;
    this.transport = transport;
    this.#setTimer(() => this.#lose("timeout", "No welcome"), this.#options.connectTimeout ?? 10_000);
    let shown: string | null | undefined;
    try {
      shown = typeof token === "function" ? await token() : token;
    } catch (error) {
      if (generation === this.#generation) {
        this.#round = [];
        this.#lose("token", `No token: ${String(error)}`);
      }
      return;
    }
    if (generation !== this.#generation) return;
    const listener: LinkListener = {
      message: (message) => this.#receive(message),
      alive: () => (this.#heardAt = Date.now()),
      end: (end) => this.#ended(end),
    };
    const { fetch = globalThis.fetch.bind(globalThis), WebSocket = globalThis.WebSocket } = this.#options;
    const { withCredentials, bufferSize, paths, namespace = "/" } = this.#options;
    if (transport === "websocket") {
      const url = this.#address(paths?.websocket ?? "/ws", namespace);
      this.#link = openWebSocket(WebSocket, url, shown, listener);
    } else {
      const events = paths?.events ?? "/events";
      this.#link = openEventStream(
        { stream: this.#address(events, namespace), back: this.#below(events) },
        {
          fetch,
          token: shown,
          credentials: withCredentials ? "include" : "same-origin",
          limit: bufferSize ?? 100,
        },
        listener,
      );
    }
  }

  /** The doors of the next round. */
  #doors(): TransportName[] {
    const { transports = ["websocket", "sse"], WebSocket = globalThis.WebSocket } = this.#options;
    const doors = transports.filter((name) => name !== "websocket" || WebSocket);
    if (doors.length === 0) throw new CrossbandError("transports", "No WebSocket: pass one as an option");
    // A door that worked before is probably down only for a moment.
    if (this.#direct) return doors.slice(0, 1);
    // A door that failed twice is tried last.
    if (this.#fallbacks > 1) doors.push(doors.shift()!);
    return doors;
  }

  #below(path: string): string {
    return this.#base.origin + this.#base.pathname.replace(/\/$/, "") + path;
  }

  #address(path: string, namespace: string): URL {
    const url = new URL(this.#below(path) + namespace.replace(/^\/?/, "/").replace(/\/$/, ""));
    const query = url.searchParams;
    for (const [name, value] of this.#base.searchParams) query.append(name, value);
    for (const [name, value] of Object.entries(this.#options.query ?? {})) query.set(name, value);
    for (const room of this.#options.rooms ?? []) query.append("room", room);
    if (this.#session) query.set("session", this.#session);
    if (this.cursor) query.set("lastEventId", this.cursor);
    return url;
  }

  #welcome({ sid, session, recovered, offset }: Message): void {
    const transport = this.transport!;
    this.#direct = this.#isPreferred();
    this.#fallbacks = this.#direct ? 0 : this.#fallbacks + 1;
    this.#round = [];
    this.#refused = false;
    this.#welcomedAt = this.#heardAt = Date.now();
    this.id = sid as string;
    this.#session = session as string;
    this.recovered = recovered as boolean;
    this.cursor = offset ?? this.cursor;
    this.#watch();
    // Buffered events go before those that listeners send now.
    this.state = "connected";
    const buffer = this.#buffer;
    this.#buffer = [];
    if (!this.recovered) this.#rejoin();
    for (const { text, message } of buffer) this.#link!.send(text, message);
    this.#fire("state", this.state);
    this.#fire("connect", { id: this.id, transport, recovered: this.recovered } satisfies Connected);
  }

  #isPreferred(): boolean {
    return this.transport === (this.#options.transports ?? ["websocket"])[0];
  }

  #rejoin(): void {
    for (const room of this.#joined) {
      this.join(room).catch((error: CrossbandError) => {
        // After a lost connection the room stays: the next connection joins again.
        if (error.code !== "disconnected" && error.code !== "timeout") this.#joined.delete(room);
        this.#fire("error", error);
      });
    }
  }

  async #refreshToken(): Promise<void> {
    const { token } = this.#options;
    if (typeof token !== "function") return;
    try {
      await this.#ask("token:refresh", [await token()]);
    } catch (error) {
      this.#fire("error", error instanceof CrossbandError ? error : new CrossbandError("token", String(error)));
    }
  }

  // Losing the connection, and reconnecting.

  /** End the connection, or the attempt, from this side. */
  #lose(code: string, message: string): void {
    this.#ended({ error: new CrossbandError(code, message), final: false });
  }

  #ended({ error, final }: End): void {
    const { reconnection = true, reconnectionAttempts = Infinity, token } = this.#options;
    const { connected } = this;
    if (connected) {
      if (Date.now() - this.#welcomedAt > STABLE) this.#attempt = 0;
    } else if (this.#isPreferred()) this.#direct = false;
    if (error.code === "unauthorized" && typeof token === "function" && !this.#refused) {
      // A new token may work.
      this.#refused = true;
      final = false;
    }
    const last = this.#round.length === 0 && (!reconnection || this.#attempt >= reconnectionAttempts);
    if (final || last) {
      // A session that the server ended cannot be resumed.
      if (error.code === "closed" || error.code === "disconnected") this.#session = undefined;
      this.#stop(error);
    } else {
      this.#drop();
      this.#wait();
      this.#setState("reconnecting");
      if (connected) this.#fire("disconnect", error.message);
    }
    if (!connected) this.#fire("connect_error", error);
  }

  #wait(): void {
    const { reconnectionDelay = 500, reconnectionDelayMax = 30_000, random = Math.random } = this.#options;
    // The other doors of the round are tried without a wait.
    const wait =
      this.#round.length > 0 ? 0 : backoff(this.#attempt++, reconnectionDelay, reconnectionDelayMax, random);
    this.#setTimer(() => void this.#open(), wait);
  }

  #wake(): void {
    if (this.state === "connected") this.#probe();
    else if (!this.#link) {
      this.#attempt = 0;
      void this.#open();
    }
  }

  /** Probe the connection after it has been silent. */
  #watch(): void {
    const { heartbeat = 25_000 } = this.#options;
    this.#clearTimer();
    if (heartbeat > 0) {
      this.#setTimer(() => {
        if (Date.now() - this.#heardAt < heartbeat) this.#watch();
        else this.#probe();
      }, Math.max(heartbeat - (Date.now() - this.#heardAt), 100));
    }
  }

  #probe(): void {
    this.#heardAt = 0;
    this.#link!.probe();
    this.#setTimer(() => {
      if (this.#heardAt > 0) this.#watch();
      else this.#lose("silent", "Connection silent");
    }, PROBE_TIME);
  }

  /** Close the link, and reject the acknowledgements that it still owes. */
  #drop(): void {
    this.#generation += 1;
    this.#clearTimer();
    this.#link?.close();
    this.#link = undefined;
    const unsent = new Set(this.#buffer.map(({ message }) => message.id));
    for (const id of [...this.#pending.keys()]) {
      if (unsent.has(id)) continue;
      this.#settle(id)!.reject(
        new CrossbandError("disconnected", "Lost before the answer; perhaps handled"),
      );
    }
  }

  #stop(error: CrossbandError): void {
    const { connected } = this;
    this.#drop();
    this.#stopListening!();
    this.#stopListening = undefined;
    this.#setState("closed");
    if (connected) this.#fire("disconnect", error.message);
  }

  #setState(state: State): void {
    if (state === this.state) return;
    this.state = state;
    this.#fire("state", state);
  }

  // Across reloads. A page that loads removes the session from storage, so that no second tab uses
  // it; a page that closes stores it again, with the cursor of the last event it delivered.

  #keepSession(): () => void {
    if (!this.#options.persist) return () => {};
    const { window: page } = globalThis;
    const kept = this.#remember("getItem");
    this.#remember("removeItem");
    if (kept && !this.#session) [this.#session, this.cursor] = JSON.parse(kept) as [string, string];
    const leave = (): void => void this.#remember("setItem");
    // Restored from the back/forward cache, with its state intact.
    const back = ({ persisted }: PageTransitionEvent): void => {
      if (!persisted) return;
      const own = this.#remember("getItem")?.includes(JSON.stringify(this.#session));
      if (own) this.#remember("removeItem");
      else this.#session = undefined;
    };
    page?.addEventListener("pagehide", leave);
    page?.addEventListener("pageshow", back);
    return () => {
      page?.removeEventListener("pagehide", leave);
      page?.removeEventListener("pageshow", back);
      leave();
    };
  }

  #remember(what: keyof Memory): string | null | undefined {
    const { persist } = this.#options;
    if (!persist) return undefined;
    const key = persist === true ? `crossband:${this.#address("", this.#options.namespace ?? "/").pathname}` : persist;
    // Storage may be full, or forbidden.
    try {
      const storage = this.#options.storage ?? globalThis.localStorage;
      if (what === "getItem") return storage.getItem(key);
      if (what === "removeItem") storage.removeItem(key);
      else if (this.#session) storage.setItem(key, JSON.stringify([this.#session, this.cursor]));
    } catch {}
    return undefined;
  }

  #setTimeout(callback: () => void, ms: number): unknown {
    return (this.#options.timers ?? globalThis).setTimeout(callback, ms);
  }

  #clearTimeout(timer: unknown): void {
    (this.#options.timers ?? globalThis).clearTimeout(timer as number);
  }

  #setTimer(callback: () => void, ms: number): void {
    this.#clearTimer();
    this.#timer = this.#setTimeout(callback, ms);
  }

  #clearTimer(): void {
    this.#clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}

/** No argument means no data; several become an array. */
function payload(args: readonly unknown[]): { data?: unknown } {
  if (args.length === 0) return {};
  return { data: args.length === 1 ? args[0] : args };
}

/** An event named like a message of the envelope is sent as type "event", with its name beside it. */
function named(event: string): { type: string; event?: string } {
  return /^(welcome|ack|gap|error)$/.test(event) ? { type: "event", event } : { type: event };
}

/** Names of ClientEvents. */
const OWN = /^(connect|disconnect|connect_error|error|gap|shutdown|state)$/;

/** Call a listener so that its error does not stop the next one. */
function guard(call: () => unknown): void {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
