// Drives socket.io-client and undici's EventSource for the tests: one JSON request a line on
// stdin, one JSON answer or notice a line on stdout. Knows nothing of the server.

import http from "node:http";
import readline from "node:readline";
import { io } from "socket.io-client";

const clients = new Map();

const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");

// Bytes cross the pipe as {"$bytes": "<base64>"}.
function pack(value) {
  if (Buffer.isBuffer(value) || value instanceof Uint8Array || value instanceof ArrayBuffer) {
    return { $bytes: Buffer.from(value).toString("base64") };
  }
  if (Array.isArray(value)) return value.map(pack);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, pack(item)]));
  }
  return value;
}

function unpack(value) {
  if (Array.isArray(value)) return value.map(unpack);
  if (value !== null && typeof value === "object") {
    if (typeof value.$bytes === "string") return Buffer.from(value.$bytes, "base64");
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, unpack(item)]));
  }
  return value;
}

// The client's cable: every TCP connection it opens, so that all can be reset at once.
// Connections are not kept alive: xmlhttprequest-ssl hides a reset on a reused one.
class Cable extends http.Agent {
  #open = new Set();
  #torn = false;

  createConnection(options, callback) {
    if (this.#torn) {
      callback(new Error("the cable is cut"));
      return undefined;
    }
    const socket = super.createConnection(options, callback);
    this.#open.add(socket);
    socket.once("close", () => this.#open.delete(socket));
    return socket;
  }

  // With `torn`, connections fail until `mend`.
  cut(torn) {
    this.#torn = torn;
    const cut = this.#open.size;
    for (const socket of this.#open) socket.resetAndDestroy();
    return cut;
  }

  mend() {
    this.#torn = false;
  }
}

// What one client heard in its order: numbers, and gaps as strings; and how it lost connections.
class Tape {
  heard = [];
  losses = [];
  #awaited = [];

  number(value) {
    this.heard.push(value);
    this.#awaited = this.#awaited.filter(({ last, resolve }) => value < last || resolve());
  }

  gap(reason) {
    this.heard.push(reason);
    for (const { resolve } of this.#awaited) resolve();
    this.#awaited = [];
  }

  // Returns what there was since the last time.
  take() {
    const { heard, losses } = this;
    this.heard = [];
    this.losses = [];
    return { heard, losses };
  }

  // Waits for the last number, which was sent, or a gap in its place.
  until(last) {
    return new Promise((resolve) => {
      const latest = this.heard.at(-1);
      if (latest >= last || typeof latest === "string") resolve();
      else this.#awaited.push({ last, resolve });
    });
  }
}

class SocketIOClient {
  constructor(id, { url, namespace, transports, auth, query, headers, path, reconnection, record, forceBase64 }) {
    this.id = id;
    this.cable = new Cable();
    // With `record`, the numbers of that event are kept and nothing is told of.
    this.record = record;
    this.tape = new Tape();
    this.times = { connects: 0, recovered: 0 };
    this.pendingAcks = new Map();
    this.nextAck = 0;
    this.socket = io(url + namespace, {
      agent: this.cable,
      auth: unpack(auth ?? {}),
      autoConnect: false,
      extraHeaders: headers,
      forceBase64,
      forceNew: true,
      path,
      query,
      reconnection: reconnection !== undefined,
      ...reconnection,
      timeout: 10_000,
      transports,
    });
    this.socket.onAny((event, ...args) => this.onEvent(event, args));
    this.socket.on("connect", () => {
      this.times.connects += 1;
      if (this.socket.recovered) this.times.recovered += 1;
      this.notify({ notice: "connect", state: this.state() });
    });
    this.socket.on("connect_error", (error) => {
      this.tape.losses.push(`refused: ${error.message}`);
      this.notify({ notice: "connect_error", message: error.message, data: pack(error.data) });
    });
    this.socket.on("disconnect", (reason) => {
      this.tape.losses.push(reason);
      this.notify({ notice: "disconnect", reason });
    });
    this.socket.io.on("open", () => {
      this.socket.io.engine.on("upgrade", (transport) => {
        this.notify({ notice: "upgrade", transport: transport.name });
      });
    });
  }

  notify(notice) {
    if (this.record === undefined) say({ client: this.id, ...notice });
  }

  onEvent(event, args) {
    if (event === this.record) this.tape.number(args[0]);
    if (event === "gap") this.tape.gap(args[0].reason);
    if (this.record !== undefined) return;
    let ack;
    if (typeof args.at(-1) === "function") {
      ack = this.nextAck++;
      this.pendingAcks.set(ack, args.pop());
    }
    this.notify({ notice: "event", event, args: pack(args), ack });
  }

  state() {
    return {
      sid: this.socket.id ?? null,
      recovered: this.socket.recovered,
      // Private, and the only way to see them: what the client will resume with.
      session: this.socket._pid ?? null,
      offset: this.socket._lastOffset ?? null,
      transport: this.socket.io.engine?.transport.name ?? null,
      times: this.times,
    };
  }

  connect() {
    return new Promise((resolve) => {
      const settle = (result) => {
        this.socket.off("connect", onConnect);
        this.socket.off("connect_error", onError);
        resolve(result);
      };
      const onConnect = () => settle({ connected: true, state: this.state() });
      const onError = (error) =>
        settle({ connected: false, message: error.message, data: pack(error.data) });
      this.cable.mend();
      this.socket.on("connect", onConnect);
      this.socket.on("connect_error", onError);
      this.socket.connect();
    });
  }

  emit({ event, args, volatile }) {
    (volatile ? this.socket.volatile : this.socket).emit(event, ...unpack(args));
  }

  async call({ event, args, timeout }) {
    return { answer: pack(await this.socket.timeout(timeout).emitWithAck(event, ...unpack(args))) };
  }

  ack({ ack, args }) {
    this.pendingAcks.get(ack)(...unpack(args));
    this.pendingAcks.delete(ack);
  }

  cut({ torn }) {
    if (!torn || !this.socket.connected) return { cut: this.cable.cut(torn) };
    return new Promise((resolve) => {
      this.socket.once("disconnect", (reason) => resolve({ reason }));
      this.cable.cut(torn);
    });
  }

  // In the midst of an upgrade the client first lets that finish.
  async close() {
    const { engine } = this.socket.io;
    const closed =
      engine && engine.readyState !== "closed"
        ? new Promise((resolve) => engine.once("close", resolve))
        : undefined;
    this.socket.disconnect();
    engine?.close();
    await closed;
  }
}

// A native EventSource: reads and reconnects by itself, with Last-Event-ID.
class EventSourceClient {
  constructor(id, { url, events, record }) {
    this.id = id;
    this.url = url;
    this.events = events;
    this.record = record;
    this.tape = new Tape();
    this.times = { connects: 0, recovered: 0 };
    this.offset = null;
    this.sid = null;
  }

  async connect() {
    const { Agent, EventSource, buildConnector } = await import("undici");
    const connector = buildConnector({});
    this.open = new Set();
    this.agent = new Agent({
      bodyTimeout: 0,
      connect: (options, callback) =>
        connector(options, (error, socket) => {
          if (socket) {
            this.open.add(socket);
            socket.once("close", () => this.open.delete(socket));
          }
          callback(error, socket);
        }),
    });
    return new Promise((resolve) => {
      this.settle = resolve;
      this.listen(EventSource, this.url);
    });
  }

  listen(EventSource, url) {
    const source = new EventSource(url, { node: { dispatcher: this.agent } });
    this.source = source;
    for (const event of this.events) {
      source.addEventListener(event, (message) => this.onMessage(event, message));
    }
    source.addEventListener("open", () => {
      this.times.connects += 1;
      if (!this.events.includes("welcome")) this.settle({ connected: true, state: this.state() });
    });
    source.addEventListener("error", () => {
      const closed = source.readyState === EventSource.CLOSED;
      this.settle({ connected: false });
      this.tape.losses.push(closed ? "given up" : "lost");
      if (this.record === undefined) say({ client: this.id, notice: "error", closed });
      // It gives up after an HTTP error, such as a proxy's when no node answers: the page opens
      // another one, where this one was.
      else if (closed && this.source === source) {
        const again = new URL(this.url);
        if (this.offset) again.searchParams.set("lastEventId", this.offset);
        this.timer = setTimeout(() => this.listen(EventSource, again.href), 300);
      }
    });
  }

  onMessage(event, { data, lastEventId }) {
    this.offset = lastEventId;
    if (event === "welcome") {
      const welcome = JSON.parse(data);
      this.sid = welcome.sid;
      if (welcome.recovered) this.times.recovered += 1;
      this.settle({ connected: true, state: this.state() });
    }
    if (event === this.record) this.tape.number(JSON.parse(data));
    if (event === "gap") this.tape.gap(JSON.parse(data).reason);
    if (this.record !== undefined) return;
    say({ client: this.id, notice: "message", event, data, lastEventId });
  }

  state() {
    return { sid: this.sid, offset: this.offset, times: this.times };
  }

  cut() {
    const cut = this.open.size;
    for (const socket of this.open) socket.resetAndDestroy();
    return { cut };
  }

  async close() {
    clearTimeout(this.timer);
    this.source.close();
    await this.agent.destroy();
  }
}

const operations = {
  open({ client, kind, ...options }) {
    const Client = kind === "eventsource" ? EventSourceClient : SocketIOClient;
    clients.set(client, new Client(client, options));
  },
  connect: ({ client }) => clients.get(client).connect(),
  emit: ({ client, ...rest }) => clients.get(client).emit(rest),
  call: ({ client, ...rest }) => clients.get(client).call(rest),
  ack: ({ client, ...rest }) => clients.get(client).ack(rest),
  cut: ({ client, ...rest }) => clients.get(client).cut(rest),
  state: ({ client }) => clients.get(client).state(),
  until: ({ client, last }) => clients.get(client).tape.until(last),
  heard: ({ client }) => {
    const { tape, times } = clients.get(client);
    return { ...tape.take(), times };
  },
  async close({ client }) {
    await clients.get(client)?.close();
    clients.delete(client);
  },
};

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const { id, op, ...request } = JSON.parse(line);
  try {
    say({ id, result: (await operations[op](request)) ?? null });
  } catch (error) {
    say({ id, error: error.message });
  }
}).on("close", () => process.exit(0));
