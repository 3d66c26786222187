// The Server-Sent Events door: the browser's own EventSource, and POST to send.
import { backChannelUrl, eventsUrl, sessionKey } from "./addresses";
import { ACK_TIMEOUT, type Door, type DoorListener, type Gap, Refusal, backoff, errorText } from "./door";

export class EventSourceDoor implements Door {
  readonly name = "sse";
  private source: EventSource | undefined;
  private readonly session = sessionKey();
  // Undefined until the first welcome.
  private cursor: string | undefined;
  private sid = "";
  private attempt = 0;
  private retryTimer = 0;

  constructor(private readonly listener: DoorListener) {
    addEventListener("online", () => {
      if (this.retryTimer !== 0) this.connect();
    });
  }

  open(): void {
    this.listener.onState("connecting");
    this.connect();
  }

  cut(): void {
    this.drop();
    this.listener.onState("cut");
  }

  restore(): void {
    this.attempt = 0;
    this.listener.onState("reconnecting");
    this.connect();
  }

  async send(content: string): Promise<unknown> {
    const response = await fetch(backChannelUrl(this.sid, this.session), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ type: "chat:message", data: { content } }),
      signal: AbortSignal.timeout(ACK_TIMEOUT),
    });
    const answer = (await response.json()) as { data?: unknown };
    if (!response.ok) throw new Refusal(errorText(answer));
    return answer.data;
  }

  private connect(): void {
    this.drop();
    const url = eventsUrl();
    url.searchParams.set("session", this.session);
    // The browser sends the Last-Event-ID header only when it reconnects by itself.
    if (this.cursor !== undefined) url.searchParams.set("lastEventId", this.cursor);
    const source = new EventSource(url);
    this.source = source;

    const on = (name: string, handle: (data: unknown, event: MessageEvent<string>) => void): void => {
      source.addEventListener(name, (event: MessageEvent<string>) => {
        if (source !== this.source) return;
        if (event.lastEventId !== "") this.cursor = event.lastEventId;
        handle(JSON.parse(event.data), event);
      });
    };
    on("welcome", (data) => {
      const { sid, recovered } = data as { sid: string; recovered: boolean };
      this.attempt = 0;
      this.sid = sid;
      this.listener.onState("connected");
      this.listener.onTransport("event stream");
      this.listener.onWelcome({ sid, recovered, cursor: this.cursor });
    });
    on("chat:message", (data, event) => this.listener.onMessage(data, event.lastEventId));
    on("gap", (data) => {
      const gap = data as Gap;
      this.cursor = gap.offset;
      this.listener.onGap(gap);
    });
    on("server:shutdown", (data) => {
      this.listener.onError((data as { message: string }).message);
    });
    source.addEventListener("error", (event) => {
      if (source !== this.source) return;
      // An `error` event with data comes from the server; one without comes from the connection.
      if (event instanceof MessageEvent) {
        this.listener.onError(errorText(JSON.parse(event.data as string)));
      } else {
        this.onLost(source);
      }
    });
  }

  private drop(): void {
    clearTimeout(this.retryTimer);
    this.retryTimer = 0;
    this.source?.close();
    this.source = undefined;
  }

  private onLost(source: EventSource): void {
    this.attempt += 1;
    this.listener.onState("reconnecting", `attempt ${this.attempt}`);
    // CONNECTING: the browser retries by itself. CLOSED: it gave up, as after a response
    // that is not an event stream (a proxy's 502 while the server restarts), so we do.
    if (source.readyState !== EventSource.CLOSED) return;
    this.drop();
    this.retryTimer = window.setTimeout(() => this.connect(), backoff(this.attempt));
  }
}
