// The client over a fake WebSocket and a fake fetch, on fake time.
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Client, connect, type CrossbandError, type Options } from "../src/index.js";
import { fakeFetch, FakeWebSocket, WebSocketClass } from "./fakes.js";

const URL_ = "http://hub.test/realtime/";
const clients: Client[] = [];
let http: ReturnType<typeof fakeFetch>;

function make(options: Options = {}, url = URL_): Client {
  const client = connect(url, {
    WebSocket: WebSocketClass,
    fetch: http.fetch as typeof fetch,
    random: () => 1,
    transports: ["websocket"],
    ...options,
  });
  clients.push(client);
  return client;
}

/** Let promises settle; no time passes. */
const settle = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0);

async function connected(options: Options = {}, welcome: object = {}): Promise<Client> {
  const client = make(options);
  await settle();
  FakeWebSocket.last.welcome(welcome);
  return client;
}

beforeEach(() => {
  vi.useFakeTimers();
  FakeWebSocket.all = [];
  http = fakeFetch();
});

afterEach(() => {
  for (const client of clients.splice(0)) client.close();
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

describe("connecting", () => {
  test("address has the mount point, the namespace, rooms and the token", async () => {
    make({ namespace: "/admin", rooms: ["a", "b&c"], token: "t0ken", query: { lang: "eo" } });
    await settle();
    const { url } = FakeWebSocket.last;
    expect(url.protocol + url.host + url.pathname).toBe("ws:hub.test/realtime/ws/admin");
    expect(url.searchParams.getAll("room")).toEqual(["a", "b&c"]);
    expect(FakeWebSocket.last.protocols).toEqual(["crossband", "bearer.t0ken"]);
    expect(url.searchParams.get("lang")).toBe("eo");
    expect(url.searchParams.has("session")).toBe(false);
  });

  test("https becomes wss", async () => {
    make({}, "https://hub.test");
    await settle();
    expect(FakeWebSocket.last.url.href).toBe("wss://hub.test/ws");
  });

  test("states and events are told in their order", async () => {
    const client = make({ autoConnect: false });
    const heard: unknown[] = [];
    client.on("state", (state) => heard.push(state));
    client.on("connect", (connected) => heard.push(connected));
    client.on("disconnect", (reason) => heard.push(reason));
    expect(client.state).toBe("closed");
    client.connect();
    await settle();
    FakeWebSocket.last.welcome();
    expect(client.connected).toBe(true);
    FakeWebSocket.last.end(1001, "Server shutting down");
    await vi.advanceTimersByTimeAsync(500);
    FakeWebSocket.last.welcome({ recovered: true });
    client.close();
    expect(heard).toEqual([
      "connecting",
      "connected",
      { id: "_me", transport: "websocket", recovered: false },
      "reconnecting",
      "Server shutting down",
      "connected",
      { id: "_me", transport: "websocket", recovered: true },
      "closed",
      "The client was closed",
    ]);
    expect(client.recovered).toBe(true);
  });

  test("attempt without a welcome is given up", async () => {
    const client = make({ connectTimeout: 3_000 });
    const failed = vi.fn<(error: CrossbandError) => void>();
    client.on("connect_error", failed);
    await vi.advanceTimersByTimeAsync(3_000);
    expect(FakeWebSocket.last.closed).toBe(true);
    expect(failed.mock.calls[0]![0].code).toBe("timeout");
    expect(client.state).toBe("reconnecting");
  });

  test("what a former connection still says is not heard", async () => {
    const client = await connected();
    const heard = vi.fn();
    client.onAny(heard);
    const old = FakeWebSocket.last;
    client.close().connect();
    await settle();
    old.say({ type: "late", data: 1, offset: "e-9" });
    old.end(4000);
    expect(heard).not.toHaveBeenCalled();
    expect(client.cursor).toBe("e-0");
    expect(client.state).toBe("connecting");
  });

  test("without WebSocket and without another door it says so", () => {
    vi.stubGlobal("WebSocket", undefined);
    expect(() => connect(URL_, { transports: ["websocket"] })).toThrow("pass one as an option");
  });
});

describe("coming back", () => {
  test("waits have full jitter and double up to the limit", async () => {
    const random = vi.fn(() => 1);
    make({ random, reconnectionDelay: 100, reconnectionDelayMax: 1_000 });
    await settle();
    for (const wait of [100, 200, 400, 800, 1_000, 1_000]) {
      const { length } = FakeWebSocket.all;
      FakeWebSocket.last.end();
      await vi.advanceTimersByTimeAsync(wait - 1);
      expect(FakeWebSocket.all).toHaveLength(length);
      await vi.advanceTimersByTimeAsync(1);
      expect(FakeWebSocket.all).toHaveLength(length + 1);
    }
    random.mockReturnValue(0.25);
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(250);
    expect(FakeWebSocket.all).toHaveLength(8);
  });

  test("connection that lasted makes the next wait short, one that did not does not", async () => {
    await connected({ reconnectionDelay: 100 });
    await vi.advanceTimersByTimeAsync(1_000);
    for (const wait of [100, 200]) {
      FakeWebSocket.last.end();
      await vi.advanceTimersByTimeAsync(wait);
      FakeWebSocket.last.welcome();
    }
    expect(FakeWebSocket.all).toHaveLength(3);
    await vi.advanceTimersByTimeAsync(10_000);
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(100);
    expect(FakeWebSocket.all).toHaveLength(4);
  });

  test("it gives up after the last attempt", async () => {
    const client = make({ reconnectionAttempts: 2, reconnectionDelay: 10 });
    const states: string[] = [];
    client.on("connect_error", () => states.push(client.state));
    for (const _ of [1, 2, 3]) {
      await vi.advanceTimersByTimeAsync(50);
      FakeWebSocket.last.end();
    }
    expect(states).toEqual(["reconnecting", "reconnecting", "closed"]);
    await vi.advanceTimersByTimeAsync(100_000);
    expect(FakeWebSocket.all).toHaveLength(3);
  });

  test("without reconnection it stays closed", async () => {
    const client = await connected({ reconnection: false });
    FakeWebSocket.last.end();
    expect(client.state).toBe("closed");
  });

  test.each([1000, 1002, 1003, 1007, 1008, 1009, 4000, 4001, 4401, 4403])("close code %i is final", async (code) => {
    const client = await connected();
    const reasons: string[] = [];
    client.on("disconnect", (reason) => reasons.push(reason));
    FakeWebSocket.last.end(code, "because");
    expect(client.state).toBe("closed");
    expect(reasons).toEqual(["because"]);
    await vi.advanceTimersByTimeAsync(100_000);
    expect(FakeWebSocket.all).toHaveLength(1);
  });

  test.each([1001, 1005, 1006, 1011, 1013, 4008])("after close code %i it comes back", async (code) => {
    const client = await connected();
    FakeWebSocket.last.end(code);
    expect(client.state).toBe("reconnecting");
  });

  test("listener may close the client in the midst of losing it", async () => {
    const client = await connected();
    client.on("disconnect", () => client.close());
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(100_000);
    expect(client.state).toBe("closed");
    expect(FakeWebSocket.all).toHaveLength(1);
  });

  test("silent connection is examined, and given up when it does not answer", async () => {
    const client = await connected({ heartbeat: 20_000 });
    await vi.advanceTimersByTimeAsync(15_000);
    FakeWebSocket.last.say({ type: "tick", data: 1 });
    await vi.advanceTimersByTimeAsync(15_000);
    expect(FakeWebSocket.last.sent).toEqual([]);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(FakeWebSocket.last.sent).toEqual([{ type: "ack", id: Number.MAX_SAFE_INTEGER }]);
    const failed = vi.fn();
    client.on("error", failed);
    FakeWebSocket.last.say({ type: "error", code: "unknown_ack", error: "", id: Number.MAX_SAFE_INTEGER });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(client.connected).toBe(true);
    await vi.advanceTimersByTimeAsync(30_000);
    expect(FakeWebSocket.all[0]!.closed).toBe(true);
    expect(failed).not.toHaveBeenCalled();
    expect(client.state).toBe("reconnecting");
  });

  test("without a heartbeat it is left in peace", async () => {
    const client = await connected({ heartbeat: 0 });
    await vi.advanceTimersByTimeAsync(1_000_000);
    expect(client.connected).toBe(true);
    expect(FakeWebSocket.last.sent).toEqual([]);
  });
});

describe("resuming", () => {
  test("session and cursor are shown, and the cursor follows the events", async () => {
    const client = await connected();
    FakeWebSocket.last.say({ type: "a", data: 1, offset: "e-1" });
    FakeWebSocket.last.say({ type: "volatile", data: 2 });
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(500);
    const { searchParams } = FakeWebSocket.last.url;
    expect(searchParams.get("session")).toBe("s".repeat(32));
    expect(searchParams.get("lastEventId")).toBe("e-1");
    expect(client.cursor).toBe("e-1");
  });

  test("no event is shown twice", async () => {
    const client = await connected();
    const heard: number[] = [];
    client.on("n", (n) => heard.push(n));
    for (const n of [1, 2]) FakeWebSocket.last.say({ type: "n", data: n, offset: `e-${n}` });
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(500);
    FakeWebSocket.last.welcome({ recovered: true, offset: "e-2" });
    for (const n of [1, 2, 3]) FakeWebSocket.last.say({ type: "n", data: n, offset: `e-${n}` });
    expect(heard).toEqual([1, 2, 3]);
    expect(client.cursor).toBe("e-3");
  });

  test("what is remembered of the past is bounded", async () => {
    const client = await connected();
    const heard = vi.fn();
    client.on("n", heard);
    for (let n = 1; n <= 1_001; n++) FakeWebSocket.last.say({ type: "n", data: n, offset: `e-${n}` });
    FakeWebSocket.last.say({ type: "n", data: 2, offset: "e-2" });
    expect(heard).toHaveBeenCalledTimes(1_001);
    FakeWebSocket.last.say({ type: "n", data: 1, offset: "e-1" });
    expect(heard).toHaveBeenCalledTimes(1_002);
  });

  test("gap is told and moves the cursor, not before it is heard", async () => {
    const client = await connected();
    FakeWebSocket.last.say({ type: "a", data: 1, offset: "e-1" });
    const gap = vi.fn();
    client.on("gap", gap);
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(500);
    FakeWebSocket.last.welcome({ offset: null, session: "t".repeat(32) });
    expect(client.cursor).toBe("e-1");
    FakeWebSocket.last.say({ type: "gap", reason: "unknown", offset: "f-7" });
    expect(gap).toHaveBeenCalledWith({ reason: "unknown", offset: "f-7" }, undefined);
    expect(client.cursor).toBe("f-7");
  });

  test("forgotten session is not shown again", async () => {
    const client = await connected();
    client.forget();
    client.close().connect();
    await settle();
    expect(FakeWebSocket.last.url.search).toBe("");
  });
});

describe("talking", () => {
  test("no argument is no data, one is data, several are an array", async () => {
    const client = await connected();
    client.emit("none");
    client.emit("one", [1]);
    client.emit("two", 1, "b");
    expect(FakeWebSocket.last.sent).toEqual([
      { type: "none" },
      { type: "one", data: [1] },
      { type: "two", data: [1, "b"] },
    ]);
  });

  test("acknowledgement resolves with its data, error rejects with the server's", async () => {
    const client = await connected();
    const good = client.emitWithAck("good", 1);
    const bad = client.emitWithAck("bad");
    const [first, second] = FakeWebSocket.last.sent;
    FakeWebSocket.last.say({ type: "error", id: second.id, code: "refused", error: "No", path: "$.x" });
    FakeWebSocket.last.say({ type: "ack", id: first.id, data: { status: "ok" } });
    await expect(good).resolves.toEqual({ status: "ok" });
    await expect(bad).rejects.toMatchObject({ code: "refused", message: "No", details: { path: "$.x" } });
  });

  test("answer that does not come is a timeout", async () => {
    const client = await connected();
    const slow = expect(client.timeout(100).emitWithAck("slow")).rejects.toMatchObject({ code: "timeout" });
    await vi.advanceTimersByTimeAsync(100);
    await slow;
    FakeWebSocket.last.say({ type: "ack", id: FakeWebSocket.last.sent[0].id, data: "late" });
  });

  test("answer that a cut took away is told at once", async () => {
    const client = await connected();
    const asked = client.emitWithAck("ask");
    FakeWebSocket.last.end();
    await expect(asked).rejects.toMatchObject({ code: "disconnected" });
  });

  test("without a connection events wait, up to a bound, and go in their order", async () => {
    const client = make({ bufferSize: 2 });
    await settle();
    expect(client.emit("a", 1)).toBe(true);
    const asked = client.emitWithAck("b", 2);
    expect(client.emit("c", 3)).toBe(false);
    await expect(client.emitWithAck("d")).rejects.toMatchObject({ code: "buffer_full" });
    client.on("connect", () => void client.emit("later"));
    FakeWebSocket.last.welcome();
    expect(FakeWebSocket.last.sent.map(({ type }) => type)).toEqual(["a", "b", "later"]);
    FakeWebSocket.last.say({ type: "ack", id: FakeWebSocket.last.sent[1].id, data: "yes" });
    await expect(asked).resolves.toBe("yes");
  });

  test("event that was given up while it waited is not sent", async () => {
    const client = make();
    await settle();
    const asked = expect(client.timeout(50).emitWithAck("a")).rejects.toMatchObject({ code: "timeout" });
    await vi.advanceTimersByTimeAsync(50);
    await asked;
    FakeWebSocket.last.welcome();
    expect(FakeWebSocket.last.sent).toEqual([]);
  });

  test("data is what it was when it was emitted", async () => {
    const client = make();
    const data = { n: 1 };
    client.emit("a", data);
    data.n = 2;
    await settle();
    FakeWebSocket.last.welcome();
    expect(FakeWebSocket.last.sent).toEqual([{ type: "a", data: { n: 1 } }]);
  });

  test("server that asks gets one answer", async () => {
    const client = await connected();
    client.on("question", (text, ack) => {
      ack(`${text}: yes`);
      ack("again");
    });
    FakeWebSocket.last.say({ type: "question", data: "Well", id: 7 });
    expect(FakeWebSocket.last.sent).toEqual([{ type: "ack", data: "Well: yes", id: 7 }]);
    FakeWebSocket.last.say({ type: "question", data: "Nobody waits" });
    expect(FakeWebSocket.last.sent).toHaveLength(1);
  });

  test("error nobody asked for, and the shutdown, are events", async () => {
    const client = await connected();
    const error = vi.fn<(error: CrossbandError) => void>();
    const shutdown = vi.fn();
    client.on("error", error).on("shutdown", shutdown);
    FakeWebSocket.last.say({ type: "error", code: "rate_limited", error: "Rate limit exceeded", event: "a" });
    FakeWebSocket.last.say({ type: "server:shutdown", message: "Bye" });
    expect(error.mock.calls[0]![0]).toMatchObject({ code: "rate_limited", details: { event: "a" } });
    expect(shutdown).toHaveBeenCalledWith("Bye", undefined);
  });

  test("event of the server with the name of the client's own is heard by onAny only", async () => {
    const client = await connected();
    const state = vi.fn();
    const any = vi.fn();
    client.on("state", state).onAny(any);
    FakeWebSocket.last.say({ type: "state", data: "published" });
    expect(state).not.toHaveBeenCalled();
    expect(any).toHaveBeenCalledWith("state", "published");
    client.offAny(any);
  });

  test("listeners come and go", async () => {
    const client = await connected();
    const [each, once, gone] = [vi.fn(), vi.fn(), vi.fn()];
    client.on("a", each).once("a", once).once("a", gone).off("a", gone);
    for (const n of [1, 2]) FakeWebSocket.last.say({ type: "a", data: n });
    client.off("a");
    FakeWebSocket.last.say({ type: "a", data: 3 });
    expect(each.mock.calls.map(([n]) => n)).toEqual([1, 2]);
    expect(once).toHaveBeenCalledTimes(1);
    expect(gone).not.toHaveBeenCalled();
  });

  test("listener that fails leaves the others alone", async () => {
    const client = await connected();
    const thrown: Error[] = [];
    vi.stubGlobal("queueMicrotask", (call: () => void) => {
      try {
        call();
      } catch (error) {
        thrown.push(error as Error);
      }
    });
    const heard = vi.fn();
    client.on("a", () => {
      throw new Error("mine");
    });
    client.on("a", heard);
    FakeWebSocket.last.say({ type: "a", data: 1 });
    expect(heard).toHaveBeenCalled();
    expect(thrown.map(({ message }) => message)).toEqual(["mine"]);
  });
});

describe("rooms", () => {
  test("joined rooms are joined again after a gap, and only then", async () => {
    const client = await connected();
    const answer = (data: unknown): void => {
      FakeWebSocket.last.say({ type: "ack", id: FakeWebSocket.last.sent.at(-1).id, data });
    };
    const joined = client.join("kitchen");
    answer({ members: 1 });
    await expect(joined).resolves.toEqual({ members: 1 });
    const left = client.join("hall").then(() => client.leave("hall"));
    answer(null);
    await settle();
    answer(null);
    await left;
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(500);
    FakeWebSocket.last.welcome({ recovered: true });
    expect(FakeWebSocket.last.sent).toEqual([]);
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(1_000);
    FakeWebSocket.last.welcome();
    expect(FakeWebSocket.last.sent).toMatchObject([{ type: "room:join", data: "kitchen" }]);
  });

  test("room that is refused later is an error, and not asked for again", async () => {
    const client = await connected();
    const errors: string[] = [];
    client.on("error", ({ code }) => errors.push(code));
    const joined = client.join("kitchen");
    FakeWebSocket.last.say({ type: "ack", id: FakeWebSocket.last.sent[0].id, data: null });
    await joined;
    for (const wait of [500, 1_000]) {
      FakeWebSocket.last.end();
      await vi.advanceTimersByTimeAsync(wait);
      FakeWebSocket.last.welcome();
      for (const { id } of FakeWebSocket.last.sent) {
        FakeWebSocket.last.say({ type: "error", id, code: "refused", error: "No" });
      }
      await settle();
    }
    expect(errors).toEqual(["refused"]);
  });
});

describe("tokens", () => {
  test("function is asked before every attempt", async () => {
    let n = 0;
    make({ token: async () => `token-${++n}` });
    await settle();
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(500);
    expect(FakeWebSocket.all.map(({ protocols }) => protocols[1])).toEqual(["bearer.token-1", "bearer.token-2"]);
  });

  test("token that cannot be had is a failed attempt", async () => {
    const token = vi.fn().mockRejectedValueOnce(new Error("offline")).mockResolvedValue("t");
    const client = make({ token });
    const failed = vi.fn<(error: CrossbandError) => void>();
    client.on("connect_error", failed);
    await settle();
    expect(failed.mock.calls[0]![0]).toMatchObject({ code: "token", message: "No token: Error: offline" });
    await vi.advanceTimersByTimeAsync(500);
    expect(FakeWebSocket.last.protocols[1]).toBe("bearer.t");
  });

  test("token that cannot be a subprotocol goes in the address", async () => {
    make({ token: "a=b/c" });
    await settle();
    expect(FakeWebSocket.last.protocols).toEqual([]);
    expect(FakeWebSocket.last.url.searchParams.get("token")).toBe("a=b/c");
  });

  test("server that warns of the expiry is shown a new token, on the same connection", async () => {
    const client = await connected({ token: () => "fresh" });
    const error = vi.fn<(error: CrossbandError) => void>();
    client.on("error", error);
    FakeWebSocket.last.say({ type: "token:expiring", data: { expires: 1, in: 30 } });
    await settle();
    const [refresh] = FakeWebSocket.last.sent;
    expect(refresh).toMatchObject({ type: "token:refresh", data: "fresh" });
    FakeWebSocket.last.say({ type: "error", id: refresh.id, code: "unauthorized", error: "Another user's" });
    await settle();
    expect(error.mock.calls[0]![0].message).toBe("Another user's");
  });

  test.each([
    ["a function", () => "t", "reconnecting"],
    ["a string", "t", "closed"],
  ])("after its token expired a client whose token is %s is %s", async (_, token, state) => {
    const client = await connected({ token });
    FakeWebSocket.last.end(4401);
    expect(client.state).toBe(state);
  });

  test("token that takes too long, or comes too late, is not used", async () => {
    let give!: (token: string) => void;
    const client = make({ token: () => new Promise((resolve) => (give = resolve)) });
    client.close();
    give("late");
    await settle();
    expect(FakeWebSocket.all).toEqual([]);
  });
});

describe("the event stream", () => {
  const welcome = { sid: "_me", session: "s".repeat(32), recovered: false, offset: "e-0" };
  const both: Options = { transports: ["websocket", "sse"], reconnectionDelay: 100 };

  async function streaming(options: Options = {}): Promise<Client> {
    const client = make({ transports: ["sse"], ...options });
    await settle();
    http.streams.at(-1)!.say("welcome", welcome, "e-0");
    await settle();
    return client;
  }

  test("it is used where WebSocket is refused, and resumes from the same cursor", async () => {
    const client = make(both);
    await settle();
    FakeWebSocket.last.welcome();
    FakeWebSocket.last.say({ type: "a", data: 1, offset: "e-1" });
    // The network changes to one that refuses WebSocket.
    for (const wait of [100, 200]) {
      FakeWebSocket.last.end();
      await vi.advanceTimersByTimeAsync(wait);
    }
    FakeWebSocket.last.end();
    await settle();
    const [stream] = http.streams;
    expect(stream!.url.pathname).toBe("/realtime/events");
    expect(stream!.url.searchParams.get("lastEventId")).toBe("e-1");
    expect(stream!.url.searchParams.get("session")).toBe("s".repeat(32));
    stream!.say("welcome", { ...welcome, recovered: true, offset: "e-1" }, "e-1");
    stream!.say("a", 2, "e-2");
    await settle();
    expect(client).toMatchObject({ connected: true, transport: "sse", cursor: "e-2", recovered: true });
  });

  test("WebSocket is tried first once more, then last", async () => {
    const client = make(both);
    const order: string[] = [];
    client.on("connect_error", () => order.push(`no ${client.transport}`));
    client.on("connect", ({ transport }) => order.push(transport));
    await settle();
    for (const again of [true, true, false]) {
      if (again) FakeWebSocket.last.end();
      await settle();
      http.streams.at(-1)!.say("welcome", welcome, "e-0");
      await vi.advanceTimersByTimeAsync(6_000);
      http.streams.at(-1)!.end();
      await vi.advanceTimersByTimeAsync(100);
    }
    expect(order).toEqual(["no websocket", "sse", "no websocket", "sse", "sse"]);
    // When the stream fails too, the WebSocket is next.
    http.refuse = { status: 502 };
    http.streams.at(-1)!.break();
    await vi.advanceTimersByTimeAsync(300);
    FakeWebSocket.last.welcome();
    expect(order.slice(5)).toEqual(["no sse", "websocket"]);
  });

  test("token and session go in headers", async () => {
    const client = await streaming({ token: () => "t0ken" });
    client.emit("a", 1);
    await settle();
    expect(http.streams[0]!.headers.get("authorization")).toBe("Bearer t0ken");
    expect(http.streams[0]!.url.search).toBe("");
    const [{ url, headers, body }] = http.posts as [(typeof http.posts)[0]];
    expect(url.href).toBe("http://hub.test/realtime/events/_me");
    expect(headers.get("x-crossband-session")).toBe("s".repeat(32));
    expect(headers.get("authorization")).toBe("Bearer t0ken");
    expect(body).toEqual({ type: "a", data: 1 });
  });

  test("clients of a namespace post to their id all the same", async () => {
    const client = await streaming({ namespace: "admin" });
    expect(http.streams[0]!.url.pathname).toBe("/realtime/events/admin");
    client.emit("a");
    await settle();
    expect(http.posts[0]!.url.pathname).toBe("/realtime/events/_me");
  });

  test("answers and errors come as on a WebSocket", async () => {
    const client = await streaming();
    http.answer = ({ type, id }) =>
      type === "good"
        ? { status: 200, body: { type: "ack", id, data: 5 } }
        : { status: 404, body: { type: "error", id, code: "unknown_event", error: "Unknown event", event: type } };
    await expect(client.emitWithAck("good")).resolves.toBe(5);
    await expect(client.emitWithAck("bad")).rejects.toMatchObject({
      code: "unknown_event",
      details: { event: "bad", status: 404 },
    });
    const error = vi.fn<(error: CrossbandError) => void>();
    client.on("error", error);
    client.emit("worse");
    await settle();
    expect(error.mock.calls[0]![0]).toMatchObject({ code: "unknown_event", details: { event: "worse" } });
  });

  test("events go one after another, an answer to the server at once, and the queue is bounded", async () => {
    const client = await streaming({ bufferSize: 2 });
    client.on("question", (_, ack) => ack("yes"));
    const open: ((answer: Response) => void)[] = [];
    http.fetch.mockImplementation(async (_, init) => {
      http.posts.push({ body: JSON.parse(String(init!.body)) } as never);
      return new Promise((resolve) => open.push(resolve));
    });
    expect([client.emit("a"), client.emit("b"), client.emit("c")]).toEqual([true, true, false]);
    http.streams[0]!.say("ack:request", { type: "question", data: null, id: 3 });
    await settle();
    expect(http.posts.map(({ body }) => body.type)).toEqual(["a", "ack"]);
    open[0]!(Response.json({ type: "ack" }));
    await settle();
    expect(http.posts.map(({ body }) => body.type)).toEqual(["a", "ack", "b"]);
  });

  test("request that the network took is an error, and the stream goes on", async () => {
    const client = await streaming();
    http.fetch.mockRejectedValueOnce(new TypeError("network error"));
    await expect(client.emitWithAck("a")).rejects.toMatchObject({ code: "disconnected" });
    expect(client.connected).toBe(true);
  });

  test("gap, error and shutdown are heard", async () => {
    const client = await streaming();
    const heard: unknown[] = [];
    client.on("gap", (gap) => heard.push(gap.reason));
    client.on("error", ({ code }) => heard.push(code));
    client.on("shutdown", (message) => heard.push(message));
    const [stream] = http.streams;
    stream!.say("gap", { reason: "expired", offset: "e-9" }, "e-9");
    stream!.say("error", { code: "internal_error", error: "Internal server error" });
    stream!.say("server:shutdown", { message: "Bye" });
    await settle();
    expect(heard).toEqual(["expired", "internal_error", "Bye"]);
    expect(client.cursor).toBe("e-9");
  });

  test("silence longer than the server's comments is a lost connection", async () => {
    const client = await streaming({ heartbeat: 20_000 });
    for (const _ of [1, 2, 3]) {
      await vi.advanceTimersByTimeAsync(15_000);
      http.streams[0]!.write(":\n");
      await settle();
    }
    expect(client.connected).toBe(true);
    await vi.advanceTimersByTimeAsync(30_000);
    expect(client.state).toBe("reconnecting");
  });

  test.each([
    [400, "invalid_request"],
    [403, "origin_not_allowed"],
    [404, "invalid_namespace"],
  ])("refusal %i is final, and says why", async (status, code) => {
    http.refuse = { status, body: { type: "error", code, error: "No" } };
    const client = make({ transports: ["sse"] });
    const failed = vi.fn<(error: CrossbandError) => void>();
    client.on("connect_error", failed);
    await settle();
    expect(client.state).toBe("closed");
    expect(failed.mock.calls[0]![0]).toMatchObject({ code, message: "No", details: { status } });
  });

  test("204 is final: the server disconnected this client", async () => {
    http.refuse = { status: 204 };
    const client = make({ transports: ["sse"] });
    await settle();
    expect(client.state).toBe("closed");
  });

  test.each([403, 404, 500, 502, 503])("status %i of somebody else is not final", async (status) => {
    http.refuse = { status };
    const client = make({ transports: ["sse"] });
    await settle();
    expect(client.state).toBe("reconnecting");
  });

  test("busy or stopping server is tried again", async () => {
    for (const [status, code] of [[503, "shutting_down"], [429, "rate_limited"]] as const) {
      http.refuse = { status, body: { type: "error", code, error: "Later" } };
      const client = make({ transports: ["sse"] });
      await settle();
      expect(client.state).toBe("reconnecting");
      client.close();
    }
  });

  test("refused token is asked for anew, once", async () => {
    http.refuse = { status: 401, body: { type: "error", code: "unauthorized", error: "Expired" } };
    const token = vi.fn(() => "t");
    const client = make({ transports: ["sse"], token });
    await settle();
    expect(client.state).toBe("reconnecting");
    await vi.advanceTimersByTimeAsync(500);
    expect(token).toHaveBeenCalledTimes(2);
    expect(client.state).toBe("closed");
  });

  test("token that is no function is refused once", async () => {
    http.refuse = { status: 401, body: { type: "error", code: "unauthorized", error: "Expired" } };
    const client = make({ transports: ["sse"], token: "t" });
    await settle();
    expect(client.state).toBe("closed");
  });
});

describe("the page", () => {
  const page = new EventTarget();
  const documentOf = Object.assign(new EventTarget(), { visibilityState: "visible" });
  const transition = (type: string, persisted: boolean): Event => Object.assign(new Event(type), { persisted });

  beforeEach(() => {
    vi.stubGlobal("window", page);
    vi.stubGlobal("document", documentOf);
  });

  test.each([
    ["online", () => page.dispatchEvent(new Event("online"))],
    ["visible again", () => documentOf.dispatchEvent(new Event("visibilitychange"))],
  ])("client that waits comes back at once when the page is %s", async (_, wake) => {
    await connected({ reconnectionDelay: 30_000 });
    FakeWebSocket.last.end();
    await vi.advanceTimersByTimeAsync(10);
    expect(FakeWebSocket.all).toHaveLength(1);
    wake();
    await settle();
    expect(FakeWebSocket.all).toHaveLength(2);
  });

  test("page that is looked at again examines its connection", async () => {
    const client = await connected();
    documentOf.dispatchEvent(new Event("visibilitychange"));
    expect(FakeWebSocket.last.sent).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(10_000);
    expect(client.state).toBe("reconnecting");
  });

  test("without a network the connection is given up, and the wait goes on", async () => {
    const client = await connected();
    page.dispatchEvent(new Event("offline"));
    expect(client.state).toBe("reconnecting");
    page.dispatchEvent(new Event("offline"));
    await vi.advanceTimersByTimeAsync(500);
    expect(FakeWebSocket.all).toHaveLength(2);
  });

  test("closed client does not listen any more", async () => {
    const client = await connected();
    client.close();
    page.dispatchEvent(new Event("online"));
    await settle();
    expect(FakeWebSocket.all).toHaveLength(1);
  });

  describe("with persist", () => {
    const kept = new Map<string, string>();
    const storage = {
      getItem: (key: string) => kept.get(key) ?? null,
      setItem: (key: string, value: string) => void kept.set(key, value),
      removeItem: (key: string) => void kept.delete(key),
    };
    const options: Options = { persist: true, storage };
    beforeEach(() => kept.clear());

    test("session and cursor outlive the page", async () => {
      await connected(options);
      FakeWebSocket.last.say({ type: "a", data: 1, offset: "e-1" });
      expect(kept.size).toBe(0);
      page.dispatchEvent(transition("pagehide", false));
      expect([...kept]).toEqual([["crossband:/realtime", JSON.stringify(["s".repeat(32), "e-1"])]]);
      await connected(options);
      const { searchParams } = FakeWebSocket.last.url;
      expect([searchParams.get("session"), searchParams.get("lastEventId")]).toEqual(["s".repeat(32), "e-1"]);
    });

    test("of two tabs one takes the session", async () => {
      kept.set("mine", JSON.stringify(["s".repeat(32), "e-1"]));
      for (const session of ["s".repeat(32), null]) {
        await connected({ ...options, persist: "mine" });
        expect(FakeWebSocket.last.url.searchParams.get("session")).toBe(session);
      }
    });

    test("page that comes back from the browser's cache finds its session, or that it was taken", async () => {
      const client = await connected(options);
      for (const session of ["s".repeat(32), null]) {
        page.dispatchEvent(transition("pagehide", true));
        if (session === null) kept.clear();
        page.dispatchEvent(transition("pageshow", true));
        expect(kept.size).toBe(0);
        FakeWebSocket.last.end();
        await vi.advanceTimersByTimeAsync(2_000);
        expect(FakeWebSocket.last.url.searchParams.get("session")).toBe(session);
        if (session) FakeWebSocket.last.welcome({ recovered: true });
      }
      client.forget();
    });

    test("forgotten session is not kept", async () => {
      const client = await connected(options);
      client.close();
      expect(kept.size).toBe(1);
      client.forget();
      expect(kept.size).toBe(0);
    });

    test("storage that cannot be used is done without", async () => {
      const broken = (): never => {
        throw new DOMException("denied", "SecurityError");
      };
      const client = await connected({
        persist: true,
        storage: { getItem: broken, setItem: broken, removeItem: broken },
      });
      expect(client.connected).toBe(true);
    });
  });
});
