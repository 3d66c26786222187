// A WebSocket whose other end is the test, and a fetch whose answers are.
import { vi } from "vitest";

export class FakeWebSocket {
  static all: FakeWebSocket[] = [];
  static get last(): FakeWebSocket {
    return FakeWebSocket.all.at(-1)!;
  }

  readonly sent: any[] = [];
  readonly url: URL;
  closed = false;
  onmessage: ((event: { data: string }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;

  constructor(
    url: string,
    readonly protocols: string[],
  ) {
    this.url = new URL(url);
    FakeWebSocket.all.push(this);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text));
  }

  close(): void {
    this.closed = true;
  }

  // What the other end does.

  say(message: object): void {
    this.onmessage?.({ data: JSON.stringify(message) });
  }

  welcome(fields: object = {}): void {
    this.say({ type: "welcome", sid: "_me", session: "s".repeat(32), recovered: false, offset: "e-0", ...fields });
  }

  end(code = 1006, reason = ""): void {
    this.onclose?.({ code, reason });
  }
}

/** As options take it. */
export const WebSocketClass = FakeWebSocket as unknown as new (url: string) => WebSocket;

export interface FakeStream {
  url: URL;
  headers: Headers;
  say(event: string, data: unknown, id?: string): void;
  write(text: string): void;
  end(): void;
  break(): void;
}

/** A fetch: GET opens a stream that the test writes, POST is answered by `answer`. */
export function fakeFetch() {
  const streams: FakeStream[] = [];
  const posts: { url: URL; headers: Headers; body: any }[] = [];
  const fake = {
    streams,
    posts,
    // What the next GET is refused with.
    refuse: undefined as { status: number; body?: object } | undefined,
    answer: (body: any): { status: number; body: object } => ({ status: 200, body: { type: "ack", id: body.id, data: null } }),
    fetch: vi.fn(async (input: string | URL | Request, init: RequestInit = {}): Promise<Response> => {
      const url = new URL(String(input));
      const headers = new Headers(init.headers);
      init.signal?.throwIfAborted();
      if (init.method === "POST") {
        const body = JSON.parse(String(init.body));
        posts.push({ url, headers, body });
        const answer = fake.answer(body);
        return Response.json(answer.body, { status: answer.status });
      }
      if (fake.refuse) {
        const { status, body } = fake.refuse;
        return body ? Response.json(body, { status }) : new Response(null, { status });
      }
      let controller!: ReadableStreamDefaultController<Uint8Array>;
      const body = new ReadableStream<Uint8Array>({ start: (c) => void (controller = c) });
      init.signal?.addEventListener("abort", () => controller.error(new DOMException("", "AbortError")));
      const write = (text: string): void => controller.enqueue(new TextEncoder().encode(text));
      streams.push({
        url,
        headers,
        write,
        say: (event, data, id) =>
          write(`event: ${event}\ndata: ${JSON.stringify(data)}\n${id === undefined ? "" : `id: ${id}\n`}\n`),
        end: () => controller.close(),
        break: () => controller.error(new TypeError("network error")),
      });
      return new Response(body, { headers: { "content-type": "text/event-stream; charset=utf-8" } });
    }),
  };
  return fake;
}
