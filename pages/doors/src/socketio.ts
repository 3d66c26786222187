// The Socket.IO door: the official client, unchanged. Resuming is its own business.
import { io } from "socket.io-client";

import { base, socketioPath } from "./addresses";
import { ACK_TIMEOUT, type Door, type DoorListener, type Gap, Refusal, errorText } from "./door";

export class SocketIODoor implements Door {
  readonly name = "socketio";
  private readonly socket = io(base.origin, {
    path: socketioPath(),
    autoConnect: false,
    reconnectionDelay: 400,
    reconnectionDelayMax: 5_000,
  });
  private isCut = false;

  constructor(private readonly listener: DoorListener) {
    const { socket } = this;
    const manager = socket.io;

    socket.on("connect", () => {
      listener.onState("connected");
      listener.onTransport(manager.engine.transport.name);
      manager.engine.once("upgrade", (transport: { name: string }) => {
        listener.onTransport(transport.name);
      });
      listener.onWelcome({
        sid: socket.id ?? "",
        recovered: socket.recovered,
        // The official client keeps its offset to itself until an event carries one.
        cursor: undefined,
      });
    });
    socket.on("disconnect", (reason) => {
      if (this.isCut) listener.onState("cut");
      else if (socket.active) listener.onState("reconnecting", reason);
      else listener.onState("refused", reason);
    });
    socket.on("connect_error", (error) => {
      if (this.isCut) return;
      // Tells of a server that refuses; of one that cannot be reached, reconnect_attempt does.
      if (!socket.active) listener.onState("refused", error.message);
    });
    manager.on("reconnect_attempt", (attempt) => {
      listener.onState("reconnecting", `attempt ${attempt}`);
    });

    socket.on("chat:message", (data: unknown, offset?: string) => {
      listener.onMessage(data, offset ?? "");
    });
    socket.on("gap", (gap: Gap) => listener.onGap(gap));
    socket.on("server:shutdown", ({ message }: { message: string }) => listener.onError(message));
    socket.on("error", (error: unknown) => listener.onError(errorText(error)));
  }

  open(): void {
    this.listener.onState("connecting");
    this.socket.connect();
  }

  cut(): void {
    const { socket } = this;
    this.isCut = true;
    if (socket.connected) {
      // Closes the engine below the socket, as a lost network would. socket.disconnect() would
      // tell the server goodbye, and end the session on purpose.
      socket.io.reconnection(false);
      socket.io.engine.close();
    } else {
      // Says nothing to the server: there is no connection. Ends the attempts to get one.
      socket.disconnect();
      this.listener.onState("cut");
    }
  }

  restore(): void {
    this.isCut = false;
    this.listener.onState("reconnecting");
    this.socket.io.reconnection(true);
    this.socket.connect();
  }

  async send(content: string): Promise<unknown> {
    const answer: unknown = await this.socket
      .timeout(ACK_TIMEOUT)
      .emitWithAck("chat:message", { content });
    if (typeof answer === "object" && answer !== null && "error" in answer) {
      throw new Refusal(errorText(answer));
    }
    return answer;
  }
}
