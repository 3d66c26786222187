// The types of event maps, checked by `npm run check`; the same maps fit socket.io-client.
import { io, type Socket } from "socket.io-client";
import { expectTypeOf, test } from "vitest";
import { type Client, connect, type CrossbandError } from "../src/index.js";
import { useEvent, usePresence, useSocket } from "../src/react.js";

interface ServerToClient {
  "chat:message": (message: { from: string; content: string }) => void;
  move: (x: number, y: number) => void;
  tick: () => void;
  question: (text: string, ack: (answer: string) => void) => void;
}
interface ClientToServer {
  "chat:message": (message: { content: string }, ack: (answer: { status: string }) => void) => void;
  typing: () => void;
  move: (x: number, y: number) => void;
}
type Typed = Client<ServerToClient, ClientToServer>;

// Never called: the compiler reads it.
export function check(client: Typed, official: Socket<ServerToClient, ClientToServer>): void {
  client.on("chat:message", (message) => expectTypeOf(message).toEqualTypeOf<{ from: string; content: string }>());
  client.on("move", (to) => expectTypeOf(to).toEqualTypeOf<[x: number, y: number]>());
  client.on("tick", (nothing) => expectTypeOf(nothing).toEqualTypeOf<null>());
  client.once("question", (text, ack) => {
    expectTypeOf(text).toEqualTypeOf<string>();
    expectTypeOf(ack).toEqualTypeOf<(answer: string) => void>();
    // @ts-expect-error a number is no answer
    ack(5);
  });
  client.on("gap", (gap) => expectTypeOf(gap.reason).toEqualTypeOf<string>());
  client.on("connect_error", (error) => expectTypeOf(error).toEqualTypeOf<CrossbandError>());
  client.on("state", (state) => {
    expectTypeOf(state).toEqualTypeOf<"connecting" | "connected" | "reconnecting" | "closed">();
  });
  // @ts-expect-error no such event
  client.on("chat:massage", () => {});
  client.emit("move", 1, 2);
  client.emit("typing");
  // @ts-expect-error an argument is missing
  client.emit("move", 1);
  // @ts-expect-error content is text
  client.emit("chat:message", { content: 5 });
  // @ts-expect-error the server sends it, the client does not
  client.emit("tick");
  expectTypeOf(client.emitWithAck("chat:message", { content: "" })).resolves.toEqualTypeOf<{ status: string }>();
  expectTypeOf(client.timeout(5).emitWithAck("chat:message", { content: "" })).resolves.toEqualTypeOf<{
    status: string;
  }>();

  expectTypeOf(useSocket<ServerToClient, ClientToServer>("/").socket).toEqualTypeOf<Typed>();
  expectTypeOf(useSocket(official).socket).toEqualTypeOf<Socket<ServerToClient, ClientToServer>>();
  useEvent(client, "chat:message", ({ content }) => expectTypeOf(content).toEqualTypeOf<string>());
  useEvent(client, "gap", ({ reason }) => expectTypeOf(reason).toEqualTypeOf<string>());
  // @ts-expect-error no such event
  useEvent(client, "chat:massage", () => {});
  expectTypeOf(usePresence<{ name: string }>(client, "room").members[0]!.info.name).toEqualTypeOf<string>();
  expectTypeOf(usePresence(official, null).members[0]!.info).toBeAny();
  useEvent(official, "chat:message", (message: { content: string }) => message.content);
}

test("without maps anything goes", () => {
  const client = connect("http://127.0.0.1", { autoConnect: false });
  client.on("any", (data) => expectTypeOf(data).toBeAny());
  client.emit("any", 1, "two");
  expectTypeOf(client.emitWithAck("any")).resolves.toBeAny();
  io("http://127.0.0.1", { autoConnect: false });
});
