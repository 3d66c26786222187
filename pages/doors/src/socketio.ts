// The Socket.IO door: the official client, unchanged. It resumes by itself.
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
        // The official client does not expose its offset until an event carries one.
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
      // For a server that refuses; for one that cannot be reached, see reconnect_attempt.
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
      // Closes the engine below the socket, as a network failure would. socket.disconnect() would
        // send a DISCONNECT, which ends the session.
      socket.io.reconnection(false);
      socket.io.engine.close();
    } else {
      // Sends nothing, as there is no connection; stops the reconnect attempts.
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
