// @vitest-environment happy-dom
// The hooks: over the client on a fake WebSocket, over socket.io-client's own Socket, and over
// a fake event stream.
import { act, cleanup, render, renderHook, screen } from "@testing-library/react";
import { StrictMode, useState } from "react";
import { renderToString } from "react-dom/server";
import { io } from "socket.io-client";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { connect, type Options } from "../src/index.js";
import { type SseOptions, useEvent, usePresence, useSocket, useSSE } from "../src/react.js";
import { fakeFetch, FakeWebSocket, WebSocketClass } from "./fakes.js";

const URL_ = "http://hub.test";
const settle = (ms = 0): Promise<void> => act(() => vi.advanceTimersByTimeAsync(ms).then(() => {}));
const options: Options = { WebSocket: WebSocketClass, transports: ["websocket"], random: () => 1 };

beforeEach(() => {
  vi.useFakeTimers();
  FakeWebSocket.all = [];
});

afterEach(() => {
  cleanup();
  expect(vi.getTimerCount()).toBe(0);
  vi.useRealTimers();
});

describe("useSocket", () => {
  test("it connects on mount, tells of the connection, and closes on unmount", async () => {
    const { result, unmount } = renderHook(() => useSocket(URL_, { ...options }));
    expect(result.current).toMatchObject({ isConnected: false, error: null });
    await settle();
    act(() => FakeWebSocket.last.welcome());
    expect(result.current.isConnected).toBe(true);
    act(() => FakeWebSocket.last.end());
    expect(result.current).toMatchObject({ isConnected: false, error: null });
    await settle(500);
    act(() => FakeWebSocket.last.end());
    expect(result.current.error?.message).toBe("The connection was lost");
    await settle(1_000);
    act(() => FakeWebSocket.last.welcome());
    expect(result.current).toMatchObject({ isConnected: true, error: null });
    unmount();
    expect(FakeWebSocket.last.closed).toBe(true);
    await settle(100_000);
    expect(FakeWebSocket.all).toHaveLength(3);
  });

  test("StrictMode makes one connection", async () => {
    const { result } = renderHook(() => useSocket(URL_, options), { wrapper: StrictMode });
    await settle();
    expect(FakeWebSocket.all).toHaveLength(1);
    act(() => FakeWebSocket.last.welcome());
    expect(result.current.isConnected).toBe(true);
  });

  test("renders do not reconnect, and the newest token is asked for", async () => {
    const { result, rerender } = renderHook(
      ({ n }) => useSocket(URL_, { ...options, rooms: ["a"], token: () => `token-${n}` }),
      { initialProps: { n: 1 } },
    );
    await settle();
    act(() => FakeWebSocket.last.welcome());
    const { socket } = result.current;
    for (const n of [2, 3]) rerender({ n });
    await settle(1_000);
    expect(result.current.socket).toBe(socket);
    expect(FakeWebSocket.all).toHaveLength(1);
    act(() => FakeWebSocket.last.end());
    await settle(500);
    expect(FakeWebSocket.all.map(({ protocols }) => protocols[1])).toEqual(["bearer.token-1", "bearer.token-3"]);
  });

  test("another address or option is another connection", async () => {
    const { result, rerender } = renderHook(({ rooms }) => useSocket(URL_, { ...options, rooms }), {
      initialProps: { rooms: ["a"] },
    });
    await settle();
    act(() => FakeWebSocket.last.welcome());
    rerender({ rooms: ["b"] });
    expect(result.current.isConnected).toBe(false);
    await settle();
    expect(FakeWebSocket.all.map(({ url, closed }) => [url.searchParams.get("room"), closed])).toEqual([
      ["a", true],
      ["b", false],
    ]);
  });

  test("with autoConnect off it waits for connect()", async () => {
    const { result } = renderHook(() => useSocket(URL_, { ...options, autoConnect: false }));
    await settle(1_000);
    expect(FakeWebSocket.all).toEqual([]);
    act(() => void result.current.socket.connect());
    await settle();
    expect(FakeWebSocket.all).toHaveLength(1);
  });

  test("a client that is passed in is watched, and left to its owner", async () => {
    const client = connect(URL_, options);
    await settle();
    FakeWebSocket.last.welcome();
    const { result, unmount } = renderHook(() => useSocket(client));
    expect(result.current).toMatchObject({ socket: client, isConnected: true });
    unmount();
    expect(client.connected).toBe(true);
    client.close();
  });

  test("socket.io-client's socket is told of in the same way", () => {
    const socket = io("http://hub.test", { autoConnect: false, reconnection: false });
    const { result, unmount } = renderHook(() => useSocket(socket), { wrapper: StrictMode });
    expect(result.current).toMatchObject({ socket, isConnected: false, error: null });
    // What the library does when the server refuses and when it answers.
    act(() => void socket.listeners("connect_error").forEach((each) => each(new Error("refused"))));
    expect(result.current.error?.message).toBe("refused");
    socket.connected = true;
    act(() => void socket.listeners("connect").forEach((each) => (each as () => void)()));
    expect(result.current).toMatchObject({ isConnected: true, error: null });
    unmount();
    for (const event of ["connect", "disconnect", "connect_error"]) {
      expect(socket.listeners(event as "connect")).toEqual([]);
    }
  });
});

describe("useEvent", () => {
  function Counter({ step }: { step: number }) {
    const { socket } = useSocket(URL_, options);
    const [count, setCount] = useState(0);
    useEvent(socket, "tick", (by: number) => setCount(count + by * step));
    return <output>{count}</output>;
  }

  test("newest handler is called, without subscribing or connecting again", async () => {
    const { rerender, unmount } = render(<Counter step={1} />, { wrapper: StrictMode });
    await settle();
    act(() => FakeWebSocket.last.welcome());
    act(() => FakeWebSocket.last.say({ type: "tick", data: 1, offset: "e-1" }));
    rerender(<Counter step={10} />);
    act(() => FakeWebSocket.last.say({ type: "tick", data: 2, offset: "e-2" }));
    expect(screen.getByRole("status").textContent).toBe("21");
    expect(FakeWebSocket.all).toHaveLength(1);
    unmount();
  });

  test("listeners are gone after unmount", () => {
    const socket = io("http://hub.test", { autoConnect: false });
    const { rerender, unmount } = renderHook(({ name }) => useEvent(socket, name, () => {}), {
      initialProps: { name: "a" },
    });
    expect([socket.listeners("a").length, socket.listeners("b").length]).toEqual([1, 0]);
    rerender({ name: "b" });
    expect([socket.listeners("a").length, socket.listeners("b").length]).toEqual([0, 1]);
    unmount();
    expect(socket.hasListeners("b")).toBe(false);
  });

  test("it waits for a socket", () => {
    renderHook(() => useEvent(null, "a", () => {}));
  });
});

describe("useSSE", () => {
  let http: ReturnType<typeof fakeFetch>;
  beforeEach(() => {
    http = fakeFetch();
    vi.spyOn(Math, "random").mockReturnValue(1);
  });

  function follow(more: Partial<SseOptions> = {}) {
    return renderHook((props: Partial<SseOptions>) => useSSE({ url: "/events", fetch: http.fetch as typeof fetch, ...props }), {
      initialProps: more,
      wrapper: StrictMode,
    });
  }

  test("it tells of the stream, its events and its cursor", async () => {
    const heard: unknown[] = [];
    const { result, unmount } = follow({ events: ["metrics"], onMessage: (message) => heard.push(message) });
    expect(result.current).toEqual({ isConnected: false, error: null, lastEventId: "" });
    await settle();
    expect(http.streams).toHaveLength(1);
    expect(result.current.isConnected).toBe(true);
    await act(async () => {
      http.streams[0]!.say("welcome", {}, "e-0");
      http.streams[0]!.say("metrics", { cpu: 5 }, "e-1");
      http.streams[0]!.write("event: metrics\ndata: not JSON\n\n");
    });
    expect(heard).toEqual([
      { event: "metrics", data: { cpu: 5 }, lastEventId: "e-1" },
      { event: "metrics", data: "not JSON", lastEventId: "e-1" },
    ]);
    expect(result.current.lastEventId).toBe("e-1");
    unmount();
    expect(http.fetch.mock.calls[0]![1]!.signal!.aborted).toBe(true);
  });

  test("after a cut it comes back with its cursor", async () => {
    const { result } = follow();
    await settle();
    await act(async () => http.streams[0]!.say("a", 1, "e-1"));
    await act(async () => http.streams[0]!.write("retry: 100\n"));
    await act(async () => http.streams[0]!.break());
    expect(result.current).toMatchObject({ isConnected: false, error: { code: "closed" } });
    await settle(100);
    expect(http.streams[1]!.headers.get("last-event-id")).toBe("e-1");
    expect(result.current).toEqual({ isConnected: true, error: null, lastEventId: "e-1" });
  });

  test("to another origin the cursor goes in the address, which needs no preflight", async () => {
    follow({ url: "http://other.test/events?room=a" });
    await settle();
    await act(async () => http.streams[0]!.say("a", 1, "e-1"));
    await act(async () => http.streams[0]!.end());
    await settle(500);
    expect(http.streams[1]!.url.href).toBe("http://other.test/events?room=a&lastEventId=e-1");
    expect(http.streams[1]!.headers.has("last-event-id")).toBe(false);
  });

  test("renders do not reconnect, and the newest handler is called", async () => {
    const heard: string[] = [];
    const { rerender } = follow({ onMessage: () => heard.push("first") });
    await settle();
    rerender({ onMessage: () => heard.push("second"), events: ["a"], headers: undefined as never });
    await settle(1_000);
    await act(async () => http.streams[0]!.say("a", 1));
    expect(heard).toEqual(["second"]);
    expect(http.fetch).toHaveBeenCalledTimes(1);
    rerender({ url: "/other" });
    await settle();
    expect(http.streams[1]!.url.pathname).toBe("/other");
  });

  test("refusal is an error, and final", async () => {
    http.refuse = { status: 401, body: { type: "error", code: "unauthorized", error: "Who are you?" } };
    const { result } = follow();
    await settle();
    expect(result.current).toMatchObject({ isConnected: false, error: { code: "unauthorized", message: "Who are you?" } });
    await settle(100_000);
    expect(http.fetch).toHaveBeenCalledTimes(1);
  });

  test("silent stream is opened anew", async () => {
    follow({ heartbeat: 30_000 });
    await settle();
    await settle(29_000);
    await act(async () => http.streams[0]!.write(":\n"));
    await settle(29_000);
    expect(http.streams).toHaveLength(1);
    await settle(1_500);
    expect(http.streams).toHaveLength(2);
  });

  test("without an address there is no stream", async () => {
    const { rerender } = follow({ url: null });
    await settle();
    expect(http.fetch).not.toHaveBeenCalled();
    rerender({ url: "/events" });
    await settle();
    expect(http.streams).toHaveLength(1);
  });
});

describe("usePresence", () => {
  test("the members of a room, from mount to unmount; of another room, its own", async () => {
    const client = connect(URL_, options);
    await settle();
    FakeWebSocket.last.welcome();
    const answer = async (...ids: string[]): Promise<void> => {
      const { id } = FakeWebSocket.last.sent.at(-1);
      const members = ids.map((id) => ({ id, info: null }));
      await act(async () => FakeWebSocket.last.say({ type: "ack", id, data: { members, next: null } }));
    };
    const { result, rerender, unmount } = renderHook(({ room }) => usePresence(client, room), {
      initialProps: { room: "one" as string | null },
      wrapper: StrictMode,
    });
    const ids = (): string[] => result.current.members.map(({ id }) => id);
    expect(result.current).toEqual({ members: [], isReady: false, error: null });
    await answer("ann");
    expect(result.current.isReady).toBe(true);
    act(() =>
      FakeWebSocket.last.say({
        type: "presence:join",
        data: { room: "one", member: { id: "bob", info: null }, count: 2 },
        offset: "e-1",
      }),
    );
    expect(ids()).toEqual(["ann", "bob"]);
    rerender({ room: "two" });
    expect(result.current).toEqual({ members: [], isReady: false, error: null });
    await answer("cid");
    expect(ids()).toEqual(["cid"]);
    rerender({ room: null });
    expect(ids()).toEqual([]);
    unmount();
    client.close();
  });
});

test("page is rendered on a server, where nothing connects", () => {
  const fetch = vi.fn();
  function Page() {
    const { socket, isConnected, error } = useSocket("/realtime", options);
    const { lastEventId } = useSSE({ url: "/events", fetch });
    useEvent(socket, "a", () => {});
    const { members } = usePresence(socket, "room");
    return <p>{`${isConnected} ${error} "${lastEventId}" ${members.length}`}</p>;
  }
  vi.stubGlobal("location", undefined);
  expect(renderToString(<Page />)).toBe("<p>false null &quot;&quot; 0</p>");
  expect(vi.getTimerCount()).toBe(0);
  expect(fetch).not.toHaveBeenCalled();
  expect(FakeWebSocket.all).toEqual([]);
});
