// The state of the connection: always a lamp, and a text when something is wrong.
import { useEffect, useState } from "react";

import type { Link } from "./state";

const WORDS: Record<Link["state"], string> = {
  connecting: "Connecting",
  connected: "Connected",
  lost: "Reconnecting",
  refused: "Not connected",
};

export function ConnectionLamp({ link }: { link: Link }) {
  return (
    <p className="state" data-state={link.state} data-testid="state" role="status">
      <i className="lamp" aria-hidden="true" />
      <span>{WORDS[link.state]}</span>
    </p>
  );
}

export function ConnectionNotice({ link, onRetry }: { link: Link; onRetry: () => void }) {
  const online = useOnline();
  if (link.state === "connected" || link.state === "connecting") return null;
  return (
    <div className="notice" data-kind={link.state} data-testid="notice">
      <p role={link.state === "refused" ? "alert" : undefined}>
        {link.state === "refused" ? (
          <strong>{link.reason}</strong>
        ) : (
          <>
            <strong>{link.reason || (online ? "The connection was lost." : "You are offline.")}</strong> Reconnecting.
            What you write is kept, and sent afterwards.
          </>
        )}
      </p>
      <button type="button" onClick={onRetry}>
        Try now
      </button>
    </div>
  );
}

function useOnline(): boolean {
  const [online, setOnline] = useState(navigator.onLine);
  useEffect(() => {
    const changed = () => setOnline(navigator.onLine);
    addEventListener("online", changed);
    addEventListener("offline", changed);
    return () => {
      removeEventListener("online", changed);
      removeEventListener("offline", changed);
    };
  }, []);
  return online;
}
