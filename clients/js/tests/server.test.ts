// The client against the real server: `crossband serve` on a free port, over both doors.
import { spawn } from "node:child_process";
import { once } from "node:events";
import net from "node:net";
import { WebSocket } from "undici";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { type Client, connect, type Options, type TransportName } from "../src/index.js";
import { COMMAND, KEY, type Server, start } from "./serve.js";

const DOORS: TransportName[] = ["websocket", "sse"];
const cleanups: (() => unknown)[] = [];

// The port of the server that runs throughout, for tests that neither stop it nor set it up.
let port = 0;
let stop: () => Promise<void>;

beforeAll(async () => {
  ({ port, stop } = await start());
});

afterAll(() => stop());

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function serve(port = 0, env: Record<string, string> = {}): Promise<Server> {
  const server = await start({ port, env });
  cleanups.push(() => server.stop());
  return server;
}

/** A cable between the client and the server, to be cut below HTTP. */
class Cable {
  readonly #pairs = new Set<net.Socket>();
  readonly #server = net.createServer((near) => {
    const far = net.connect(this.target, "127.0.0.1");
    for (const [from, to] of [[near, far], [far, near]] as const) {
      this.#pairs.add(from);
      from.on("error", () => {}).on("close", () => {
        this.#pairs.delete(from);
        to.destroy();
      });
    }
    far.pipe(near);
    near.once("data", (data) => {
      if (this.refuseUpgrades && /^upgrade: websocket/im.test(String(data))) {
        near.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
      } else {
        far.write(data);
        near.pipe(far);
      }
    });
  });

  constructor(
    readonly target: number,
    public refuseUpgrades = false,
  ) {
    cleanups.push(() => {
      this.cut();
      this.#server.close();
    });
  }

  async listen(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `http://127.0.0.1:${(this.#server.address() as net.AddressInfo).port}`;
  }

  cut(): void {
    for (const socket of this.#pairs) socket.resetAndDestroy();
  }
}

function make(url: string, options: Options = {}): Client {
  const client = connect(url, { WebSocket: WebSocket as never, reconnectionDelay: 50, ...options });
  cleanups.push(() => client.close());
  return client;
}

const heard = (client: Client, event: string): Promise<any> =>
  new Promise((resolve) => client.once(event, resolve as never));

async function publish(port: number, data: unknown, room?: string, event = "n"): Promise<void> {
  const response = await fetch(`http://127.0.0.1:${port}/api/broadcast`, {
    method: "POST",
    headers: { Authorization: `Bearer ${KEY}` },
    body: JSON.stringify({ event, data, room }),
  });
  expect(response.status).toBe(200);
}

/** Numbers as they arrive, and a promise of each. */
function tape(client: Client) {
  const numbers: number[] = [];
  let check = (): void => {};
  client.on("n", (n) => {
    numbers.push(n);
    check();
  });
  return {
    numbers,
    until: (n: number): Promise<void> =>
      new Promise((resolve) => {
        check = () => numbers.includes(n) && resolve();
        check();
      }),
  };
}

describe.each(DOORS)("over %s", (door) => {
  const options: Options = { transports: [door] };

  test("events, answers, errors and rooms", async () => {
    const [one, two] = [make(`http://127.0.0.1:${port}`, options), make(`http://127.0.0.1:${port}`, options)];
    await Promise.all([heard(one, "connect"), heard(two, "connect")]);
    expect(one.transport).toBe(door);
    await expect(one.join("kitchen")).resolves.toMatchObject({ status: "joined", room: "kitchen" });
    await two.join("kitchen");
    const message = heard(two, "chat:message");
    await expect(one.emitWithAck("chat:message", { room: "kitchen", content: "hi 👋" })).resolves.toEqual({
      status: "received",
    });
    await expect(message).resolves.toEqual({ from: one.id, room: "kitchen", content: "hi 👋" });
    await one.leave("kitchen");
    await expect(one.emitWithAck("chat:message", { room: "kitchen", content: "x" })).rejects.toMatchObject({
      code: "not_in_room",
    });
    await expect(one.emitWithAck("chat:message", { content: 5 })).rejects.toMatchObject({
      code: "invalid_message",
      details: { path: "$.content" },
    });
  });

  test("events that are named like words of the protocol are events as any other", async () => {
    const client = make(`http://127.0.0.1:${port}`, options);
    await heard(client, "connect");
    for (const name of ["ack", "welcome"]) {
      for (const data of [{ id: 1, ok: true }, [1, "two"]]) {
        const event = heard(client, name);
        await publish(port, data, undefined, name);
        await expect(event).resolves.toEqual(data);
      }
      await expect(client.emitWithAck(name, 1)).rejects.toMatchObject({
        code: "unknown_event",
        details: { event: name },
      });
    }
  });

  test("what was missed in a cut arrives, once and in order", async () => {
    const cable = new Cable(port);
    const client = make(await cable.listen(), { ...options, rooms: ["r"] });
    await heard(client, "connect");
    const { id } = client;
    const { numbers, until } = tape(client);
    for (let round = 0; round < 3; round++) {
      await publish(port, 2 * round, "r");
      await until(2 * round);
      const lost = heard(client, "disconnect");
      const back = heard(client, "connect");
      cable.cut();
      await lost;
      await publish(port, 2 * round + 1, "r");
      expect(await back).toMatchObject({ recovered: true, id });
    }
    await until(5);
    expect(numbers).toEqual([0, 1, 2, 3, 4, 5]);
  });

  test("restart of the server is a gap, and what follows arrives", async () => {
    const server = await serve();
    const client = make(`http://127.0.0.1:${server.port}`, options);
    await heard(client, "connect");
    await client.join("r");
    const { numbers, until } = tape(client);
    await publish(server.port, 1, "r");
    await until(1);
    const shutdown = heard(client, "shutdown");
    const gap = heard(client, "gap");
    await server.stop();
    await shutdown;
    await serve(server.port);
    await expect(gap).resolves.toMatchObject({ reason: "unknown" });
    // It asks for its room again; what it is answered comes after.
    await client.emitWithAck("room:join", "other");
    await publish(server.port, 2, "r");
    await until(2);
    expect(numbers).toEqual([1, 2]);
  });

  test("session and cursor outlive the client, as after a reload of the page", async () => {
    const kept = new Map<string, string>();
    const storage = {
      getItem: (key: string) => kept.get(key) ?? null,
      setItem: (key: string, value: string) => void kept.set(key, value),
      removeItem: (key: string) => void kept.delete(key),
    };
    const first = make(`http://127.0.0.1:${port}`, { ...options, persist: true, storage });
    await heard(first, "connect");
    first.close();
    await publish(port, 1);
    const second = make(`http://127.0.0.1:${port}`, { ...options, persist: true, storage });
    const { until } = tape(second);
    expect(await heard(second, "connect")).toMatchObject({ recovered: true, id: first.id });
    await until(1);
  });

  test("token is shown, refreshed before it expires, and asked for after it was refused", async () => {
    const secret = "a secret of at least thirty-two bytes";
    const { port } = await serve(0, { CROSSBAND_JWT_SECRET: secret, CROSSBAND_TOKEN_WARNING: "119" });
    const token = (expires: string): Promise<string> =>
      new Promise((resolve) => {
        const made = spawn(COMMAND, ["token", "--user", "ann", "--rooms", "*", "--expires", expires, "--secret", secret]);
        let text = "";
        made.stdout.on("data", (data) => (text += data));
        made.on("close", () => resolve(text.trim()));
      });
    const tokens = ["refused", ...(await Promise.all([token("120"), token("1h")]))];
    let refreshed!: () => void;
    const all = new Promise<void>((resolve) => (refreshed = resolve));
    const client = make(`http://127.0.0.1:${port}`, {
      transports: door === "sse" ? ["sse"] : ["websocket", "sse"],
      token: () => {
        // Of a refused WebSocket a browser says nothing: the stream says 401.
        const next = tokens.length > 1 ? tokens.shift()! : tokens[0]!;
        if (tokens.length === 1 && next === tokens[0]) refreshed();
        return next;
      },
    });
    await heard(client, "connect");
    await all;
    await expect(client.join("r")).resolves.toMatchObject({ status: "joined" });
    expect(client.connected).toBe(true);
  });
});

test("proxy that refuses upgrades: the client talks over the event stream, from the same cursor", async () => {
  const cable = new Cable(port);
  const client = make(await cable.listen());
  expect(await heard(client, "connect")).toMatchObject({ transport: "websocket" });
  const { id } = client;
  const { numbers, until } = tape(client);
  await publish(port, 1);
  await until(1);
  cable.refuseUpgrades = true;
  const back = heard(client, "connect");
  cable.cut();
  await publish(port, 2);
  expect(await back).toEqual({ id, transport: "sse", recovered: true });
  await until(2);
  await expect(client.emitWithAck("chat:message", { content: "hi" })).resolves.toEqual({ status: "received" });
  expect(numbers).toEqual([1, 2]);
});
