// The raw WebSocket door: the browser's own WebSocket and a JSON envelope.
import { websocketUrl } from "./addresses";
import { ACK_TIMEOUT, type Door, type DoorListener, Refusal, backoff, errorText } from "./door";

interface Frame {
  type: string;
  data?: unknown;
  id?: number;
  offset?: string | null;
  sid?: string;
  session?: string;
  recovered?: boolean;
  reason?: string;
  message?: string;
}

// Close codes after which the client stays away: docs/reference/close-codes.md.
const FINAL_CODES = /^(100[0237-9]|400[0-7]|44\d\d)$/;

export class WebSocketDoor implements Door {
  readonly name = "websocket";
  private socket: WebSocket | undefined;
  // Both undefined until the first welcome.
  private session: string | undefined;
  private cursor: string | undefined;
  private isCut = false;
  private attempt = 0;
  private retryTimer = 0;
  private lastId = 0;
  private readonly awaiting = new Map<number, PromiseWithResolvers>();

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
    this.isCut = true;
    this.drop();
    this.listener.onState("cut");
  }

  restore(): void {
    this.isCut = false;
    this.attempt = 0;
    this.listener.onState("reconnecting");
    this.connect();
  }

  send(content: string): Promise<unknown> {
    const { socket } = this;
    if (socket?.readyState !== WebSocket.OPEN) return Promise.reject(new Refusal("Not connected"));
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      const timer = window.setTimeout(() => {
        this.awaiting.delete(id);
        reject(new Refusal("No acknowledgement"));
      }, ACK_TIMEOUT);
      this.awaiting.set(id, { resolve, reject, timer });
      socket.send(JSON.stringify({ type: "chat:message", data: { content }, id }));
    });
  }

  private connect(): void {
    this.drop();
    const url = websocketUrl();
    if (this.session !== undefined) url.searchParams.set("session", this.session);
    if (this.cursor !== undefined) url.searchParams.set("lastEventId", this.cursor);
    const socket = new WebSocket(url);
    this.socket = socket;
    // A dropped socket may still deliver messages until its close is answered. They would move the
    // cursor, so only the current socket counts.
    socket.onmessage = ({ data }: MessageEvent<string>) => {
      if (socket === this.socket) this.onFrame(JSON.parse(data) as Frame);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.onClose(event);
    };
  }

  private drop(): void {
    clearTimeout(this.retryTimer);
    this.retryTimer = 0;
    const { socket } = this;
    this.socket = undefined;
    socket?.close();
    for (const { reject, timer } of this.awaiting.values()) {
      clearTimeout(timer);
      reject(new Refusal("The connection went before the acknowledgement came"));
    }
    this.awaiting.clear();
  }

  private onClose({ code, reason }: CloseEvent): void {
    this.drop();
    if (this.isCut) return;
    if (FINAL_CODES.test(String(code))) {
      this.listener.onState("refused", reason || `closed with code ${code}`);
      return;
    }
    this.attempt += 1;
    this.listener.onState("reconnecting", `attempt ${this.attempt}`);
    this.retryTimer = window.setTimeout(() => this.connect(), backoff(this.attempt));
  }

  private onFrame(frame: Frame): void {
    switch (frame.type) {
      case "welcome":
        this.attempt = 0;
        this.session = frame.session;
        // After a recovery the replay follows: it starts from here.
        if (frame.offset) this.cursor = frame.offset;
        this.listener.onState("connected");
        this.listener.onTransport("websocket");
        this.listener.onWelcome({
          sid: frame.sid ?? "",
          recovered: frame.recovered === true,
          cursor: this.cursor,
        });
        break;
      case "gap":
        this.cursor = frame.offset ?? this.cursor;
        this.listener.onGap({ reason: frame.reason ?? "", offset: frame.offset ?? "" });
        break;
      case "ack":
        this.settle(frame)?.resolve(frame.data);
        break;
      case "error": {
        const waiting = this.settle(frame);
        if (waiting === undefined) this.listener.onError(errorText(frame));
        else waiting.reject(new Refusal(errorText(frame)));
        break;
      }
      case "server:shutdown":
        this.listener.onError(frame.message ?? "The server is shutting down");
        break;
      default:
        if (frame.offset) this.cursor = frame.offset;
        if (frame.type === "chat:message") {
          this.listener.onMessage(frame.data, frame.offset ?? "");
        }
    }
  }

  private settle({ id }: Frame): PromiseWithResolvers | undefined {
    if (id === undefined) return undefined;
    const waiting = this.awaiting.get(id);
    this.awaiting.delete(id);
    clearTimeout(waiting?.timer);
    return waiting;
  }
}

interface PromiseWithResolvers {
  resolve(value: unknown): void;
  reject(error: Error): void;
  timer: number;
}
