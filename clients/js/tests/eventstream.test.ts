// The parser of event streams, as the HTML standard §9.2.6 has it.
import { expect, test } from "vitest";
import { EventStreamParser, type StreamEvent } from "../src/eventstream.js";

function parse(...chunks: string[]): { events: StreamEvent[]; retries: number[] } {
  const events: StreamEvent[] = [];
  const retries: number[] = [];
  const parser = new EventStreamParser(
    (event) => events.push(event),
    (ms) => retries.push(ms),
  );
  for (const chunk of chunks) parser.feed(chunk);
  return { events, retries };
}

const STREAM =
  ": ok\nretry: 2000\nevent: welcome\ndata: {}\nid: e-0\n\ndata: first\ndata:second\n\nevent: a\nid\n\nretry: soon\n" +
  "id: n\0l\ndata\n\nunknown: x\nevent: b\ndata:  two spaces\nid: e-1\n\nevent: unfinished\ndata: x";
const EVENTS = [
  { event: "welcome", data: "{}", id: "e-0" },
  { event: "message", data: "first\nsecond", id: undefined },
  { event: "message", data: "", id: undefined },
  { event: "b", data: " two spaces", id: "e-1" },
];

test.each([
  ["LF", "\n"],
  ["CRLF", "\r\n"],
  ["CR", "\r"],
])("stream with %s is split into its events, however it arrives", (_, end) => {
  const text = STREAM.replaceAll("\n", end);
  expect(parse(text)).toEqual({ events: EVENTS, retries: [2000] });
  expect(parse(...text)).toEqual({ events: EVENTS, retries: [2000] });
  for (let at = 1; at < text.length; at++) {
    expect(parse(text.slice(0, at), text.slice(at)).events).toEqual(EVENTS);
  }
});

test("event that ends with CR is not held back", () => {
  expect(parse("data: x\r\r").events).toHaveLength(1);
});

test("other line breaks of Unicode are data", () => {
  expect(parse("data: a\u2028b\u0085c\n\n").events[0]!.data).toBe("a\u2028b\u0085c");
});
