// The state of the stream in words, and a button that breaks it.
import { useEffect, useState } from "react";
import type { Dashboard, Return } from "./useDashboard";

const NAMES = { connecting: "Connecting", live: "Live", lost: "Connection lost", cut: "Cut off", off: "Switched off" };
// Seconds without a value on an open connection before the page says so.
const SILENCE = 5;

export function Status({ link, error, history, lostAt, back, now, cut, restore }: Dashboard): React.ReactElement {
  const [, setTick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => setTick((tick) => tick + 1), 1_000);
    return () => clearInterval(timer);
  }, []);
  const newest = history.at(-1)?.sample.time;
  const silent = newest === undefined ? 0 : now() - newest;
  const away = lostAt === undefined ? undefined : Math.max(0, Math.round(now() - lostAt));

  let note = "";
  let kind = "plain";
  if (link === "connecting") {
    note = error === null ? "Contacting the server…" : "The server does not respond yet. Still trying.";
  } else if (link === "off") {
    note = "This server has no event streams: these values were loaded once.";
  } else if (link !== "live") {
    kind = "away";
    note = away === undefined ? "" : `No values for ${plural(away, "second")}.`;
    if (link === "lost") note += " Still trying.";
  } else if (silent > SILENCE) {
    note = `Connected, but the server has sent no value for ${plural(Math.round(silent), "second")}.`;
    kind = "away";
  } else if (back !== undefined) {
    note = returned(back);
    kind = "back";
  } else {
    note = "One value per second.";
  }

  // Announced once per change, not every second.
  const [told, setTold] = useState("");
  const announcement = link === "live" && back !== undefined ? returned(back) : `${NAMES[link]}.`;
  useEffect(() => {
    const timer = setTimeout(() => setTold(announcement), 400);
    return () => clearTimeout(timer);
  }, [announcement]);

  const isCut = link === "cut";
  return (
    <section className="status" aria-label="Connection" data-kind={kind} data-link={link} data-testid="status">
      <p className="state">
        <i className="lamp" aria-hidden="true" />
        <span data-testid="state">{NAMES[link]}</span>
      </p>
      <p className="note" data-testid="note">
        {note}
      </p>
      <button type="button" hidden={link === "off"} onClick={isCut ? restore : cut} data-testid="cut">
        {isCut ? "Restore the stream" : "Cut the stream"}
      </button>
      <p className="unseen" role="status">
        {told}
      </p>
    </section>
  );
}

function returned({ seconds, filled, gap }: Return): string {
  const after = `Back after ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s.`;
  if (gap) {
    const what = filled === 0 ? "No missed values are left" : `${plural(filled, "value")} filled in`;
    return `${after} The server could not replay what was missed. ${what}.`;
  }
  return filled === 0 ? `${after} Nothing was missed.` : `${after} ${plural(filled, "missed value")} filled in.`;
}

function plural(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
