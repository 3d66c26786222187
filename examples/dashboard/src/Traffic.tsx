// Traffic for a lone visitor: real clients in this page that talk to each other for a while. The
// server limits the traffic of all pages together (demo/traffic.py).
import { type Client, connect } from "crossband";
import { useCallback, useEffect, useRef, useState } from "react";
import { base, doors } from "./addresses";

const WEBSOCKETS = 5;
// Only one: a browser opens six HTTP/1.1 connections to a server, for all its pages together.
const STREAMS = 1;
// Milliseconds.
const DURATION = 10_000;
const PAUSE = 250;

interface Running {
  clients: readonly Client[];
  speaking: number;
  ending: number;
}

export function Traffic(): React.ReactElement {
  const running = useRef<Running>(undefined);
  const [isRunning, setIsRunning] = useState(false);
  const [note, setNote] = useState("");

  const stop = useCallback((said: string) => {
    if (running.current === undefined) return;
    clearInterval(running.current.speaking);
    clearTimeout(running.current.ending);
    for (const client of running.current.clients) client.close();
    running.current = undefined;
    setIsRunning(false);
    setNote(said);
  }, []);
  useEffect(() => () => stop(""), [stop]);

  function start(): void {
    const open = (transport: "websocket" | "sse"): Client =>
      connect(base, {
        namespace: "/traffic",
        transports: [transport],
        reconnection: false,
        paths: { websocket: doors.websocket ?? "/ws", events: doors.sse ?? "/events" },
      });
    const speakers = Array.from({ length: WEBSOCKETS }, () => open("websocket"));
    const listeners = doors.sse === null ? [] : Array.from({ length: STREAMS }, () => open("sse"));
    for (const client of speakers) client.on("connect_error", ({ message }) => stop(`The traffic stopped: ${message}`));
    let number = 0;
    running.current = {
      clients: [...speakers, ...listeners],
      speaking: window.setInterval(() => {
        for (const client of speakers) if (client.connected) client.emit("say", number++);
      }, PAUSE),
      ending: window.setTimeout(() => stop("The traffic is over."), DURATION),
    };
    setIsRunning(true);
    setNote(`${WEBSOCKETS + listeners.length} clients in this page talk for ${DURATION / 1_000} seconds.`);
  }

  return (
    <div className="traffic">
      <button
        type="button"
        onClick={() => (isRunning ? stop("The traffic is over.") : start())}
        data-testid="traffic"
      >
        {isRunning ? "Stop the traffic" : "Make some traffic"}
      </button>
      <p role="status" data-testid="traffic-note">
        {note}
      </p>
    </div>
  );
}
