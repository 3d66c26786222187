// Who is in a room: the rules on a fake WebSocket, and over the real server.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { io } from "socket.io-client";
import { WebSocket } from "undici";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { type Client, connect, type TransportName } from "../src/index.js";
import { type Member, type Presence, type PresenceSocket, watchPresence } from "../src/presence.js";
import { FakeWebSocket, WebSocketClass } from "./fakes.js";
import { type Server, start } from "./serve.js";

const member = (id: string, info: unknown = null): Member => ({ id, info });

describe("on a fake WebSocket", () => {
  let client: Client;
  let seen: Presence[];
  let stop: () => void;
  let offset = 0;

  beforeEach(async () => {
    vi.useFakeTimers();
    FakeWebSocket.all = [];
    seen = [];
    client = connect("http://hub.test", { WebSocket: WebSocketClass, transports: ["websocket"], random: () => 1 });
    await vi.advanceTimersByTimeAsync(0);
    stop = watchPresence(client, "room", (presence) => seen.push(presence));
    FakeWebSocket.last.welcome();
  });

  afterEach(() => {
    stop();
    client.close();
    expect(vi.getTimerCount()).toBe(0);
    vi.useRealTimers();
  });

  const settle = (ms = 0): Promise<unknown> => vi.advanceTimersByTimeAsync(ms);
  const say = (what: string, one: Member, room = "room"): void =>
    FakeWebSocket.last.say({
      type: `presence:${what}`,
      data: { room, member: one, count: 1 },
      offset: `e-${++offset}`,
    });
  const asked = (): any[] => FakeWebSocket.last.sent.filter(({ type }) => type === "presence:members");
  async function answer(members: Member[], next: number | null = null): Promise<void> {
    const { id } = asked().at(-1);
    FakeWebSocket.last.say({ type: "ack", id, data: { room: "room", members, count: 0, offset: "e-0", next } });
    await settle();
  }
  async function refuse(code: string): Promise<void> {
    FakeWebSocket.last.say({ type: "error", id: asked().at(-1).id, code, error: "No" });
    await settle();
  }
  const ids = (): string[] => seen.at(-1)!.members.map(({ id }) => id);

  test("members are asked for, and events change them", async () => {
    expect(asked()).toMatchObject([{ data: { room: "room", after: 0 } }]);
    expect(seen).toEqual([]);
    await answer([member("ann"), member("bob")]);
    expect(seen).toEqual([{ members: [member("ann"), member("bob")], isReady: true, error: null }]);
    say("join", member("cid"));
    say("leave", member("ann"));
    say("update", member("bob", { away: true }));
    say("join", member("eve"), "elsewhere");
    expect(seen.at(-1)!.members).toEqual([member("bob", { away: true }), member("cid")]);
    expect(seen).toHaveLength(4);
    // Each is a list of its own.
    expect(seen[0]!.members).toHaveLength(2);
  });

  test("events that come before the answer are applied to it, in order", async () => {
    say("leave", member("ann"));
    say("join", member("bob"));
    say("leave", member("bob"));
    say("join", member("bob", 2));
    expect(seen).toEqual([]);
    // The answer may have some of them already.
    await answer([member("ann"), member("cid"), member("bob", 2)]);
    expect(seen.at(-1)!.members).toEqual([member("cid"), member("bob", 2)]);
  });

  test("events that the answer has already change nothing, even if they come after it", async () => {
    await answer([member("ann"), member("bob")]);
    say("join", member("ann"));
    expect(ids()).toEqual(["ann", "bob"]);
  });

  test("large rooms are read in pages", async () => {
    await answer([member("ann"), member("bob")], 7);
    expect(asked().at(-1).data).toEqual({ room: "room", after: 7 });
    say("leave", member("ann"));
    say("join", member("ann"));
    await answer([member("cid"), member("ann")]);
    expect(seen).toHaveLength(1);
    expect(ids()).toEqual(["bob", "cid", "ann"]);
  });

  test("client that resumes goes on without asking", async () => {
    await answer([member("ann")]);
    FakeWebSocket.last.end();
    expect(client.connected).toBe(false);
    expect(ids()).toEqual(["ann"]);
    await settle(500);
    FakeWebSocket.last.welcome({ recovered: true });
    say("join", member("bob"));
    await settle();
    expect(asked()).toEqual([]);
    expect(ids()).toEqual(["ann", "bob"]);
  });

  test("client that starts afresh, or was cut while it asked, asks again", async () => {
    FakeWebSocket.last.end();
    await settle(500);
    FakeWebSocket.last.welcome({ recovered: true });
    say("join", member("bob"));
    await answer([member("ann"), member("bob")]);
    expect(ids()).toEqual(["ann", "bob"]);
    FakeWebSocket.last.end();
    await settle(1_000);
    FakeWebSocket.last.welcome({ recovered: false });
    await answer([member("cid")]);
    expect(ids()).toEqual(["cid"]);
    expect(seen.every(({ isReady }) => isReady)).toBe(true);
  });

  test("after a gap it asks again, and an answer to an earlier question does not count", async () => {
    const [{ id }] = asked();
    FakeWebSocket.last.say({ type: "gap", reason: "lost", offset: "e-9" });
    FakeWebSocket.last.say({ type: "ack", id, data: { members: [member("old")], next: null } });
    await settle();
    expect(seen).toEqual([]);
    await answer([member("new")]);
    expect(ids()).toEqual(["new"]);
  });

  test("outside of the room it waits, asks again later, and at once when the room is heard", async () => {
    await refuse("forbidden");
    expect(seen.at(-1)).toMatchObject({ members: [], isReady: false, error: { code: "forbidden" } });
    await settle(499);
    expect(asked()).toHaveLength(1);
    await settle(1);
    expect(asked()).toHaveLength(2);
    await refuse("forbidden");
    say("join", member("me"));
    expect(asked()).toHaveLength(3);
    await answer([member("me")]);
    expect(seen.at(-1)).toEqual({ members: [member("me")], isReady: true, error: null });
  });

  test("room that shows nobody is not asked for again", async () => {
    await refuse("not_found");
    await settle(20_000);
    expect(asked()).toHaveLength(1);
    expect(seen.at(-1)!.error!.message).toBe("No");
  });

  test("once stopped, nothing is told", async () => {
    stop();
    say("join", member("bob"));
    await answer([member("ann")]);
    expect(seen).toEqual([]);
  });
});

describe("over the real server", () => {
  const cwd = mkdtempSync(join(tmpdir(), "crossband-"));
  const cleanups: (() => unknown)[] = [];
  let server: Server;

  beforeAll(async () => {
    writeFileSync(
      join(cwd, "rooms.py"),
      `
from crossband import Hub, Member, Socket

hub = Hub()
hub.presence("room", member=lambda socket: Member(socket.data["name"], socket.data.get("away")))

@hub.on("room:join")
async def join(socket: Socket, name: str) -> None:
    socket.data["name"] = name
    await socket.join("room")

@hub.on("room:leave")
async def leave(socket: Socket) -> None:
    await socket.leave("room")

@hub.on("away")
async def away(socket: Socket) -> None:
    socket.data["away"] = True
    await socket.update_presence()
`,
    );
    server = await start({ target: "rooms:hub", cwd });
  });

  afterAll(async () => {
    await server.stop();
    rmSync(cwd, { recursive: true });
  });

  afterEach(() => {
    for (const cleanup of cleanups.splice(0).reverse()) cleanup();
  });

  /** Watch a room, and wait for states. */
  function watch(socket: PresenceSocket) {
    let latest: Presence | undefined;
    let check = (): void => {};
    const stop = watchPresence(socket, "room", (presence) => {
      latest = presence;
      check();
    });
    cleanups.push(stop);
    return (...ids: string[]): Promise<Presence> =>
      new Promise((resolve) => {
        check = () => {
          if (latest?.isReady && String(latest.members.map(({ id }) => id)) === String(ids)) resolve(latest);
        };
        check();
      });
  }

  function make(transport: TransportName): Client {
    const client = connect(`http://127.0.0.1:${server.port}`, {
      WebSocket: WebSocket as never,
      transports: [transport],
      reconnectionDelay: 10,
    });
    cleanups.push(() => client.close());
    return client;
  }

  test.each(["websocket", "sse", "socket.io"])("who comes, changes and goes is seen over %s", async (door) => {
    let socket: PresenceSocket;
    if (door === "socket.io") {
      const official = io(`http://127.0.0.1:${server.port}`);
      cleanups.push(() => official.disconnect());
      socket = official;
    } else socket = make(door as TransportName);
    const members = watch(socket);
    await socket.emitWithAck("room:join", "ann");
    await members("ann");
    const other = make("websocket");
    await other.emitWithAck("room:join", "bob");
    await members("ann", "bob");
    // Another tab of the same.
    const tab = make("sse");
    await tab.emitWithAck("room:join", "bob");
    await other.emitWithAck("away");
    const { members: found } = await members("ann", "bob");
    expect(found[0]).toEqual(member("ann"));
    await other.emitWithAck("room:leave");
    await tab.emitWithAck("room:leave");
    await members("ann");
    await socket.emitWithAck("room:leave");
  });
});
