// The state of the page: the values of the last minutes, the notifications, and the stream. After
// a lost connection the stream itself fills in the missed values, from the last cursor. A new page,
// and values older than the server's history, are loaded over HTTP.
import { useSSE } from "crossband/react";
import { useCallback, useEffect, useReducer, useRef, useState } from "react";
import { EVENTS_URL, METRICS_URL } from "./addresses";
import { type History, type Sample, merge } from "./samples";

const EVENTS = ["welcome", "sample", "notification"] as const;
const NOTIFICATIONS = 20;

export type Level = "info" | "success" | "warning" | "error";

export interface Notification {
  /** Its cursor. */
  offset: string;
  title: string;
  message: string;
  level: Level;
  time: number;
}

export type Link = "connecting" | "live" | "lost" | "cut" | "off";

/** How the page came back after a cut. */
export interface Return {
  seconds: number;
  /** Values filled in so far. */
  filled: number;
  /** The stream could not go on where it was cut: the server has a new log, or forgot. */
  gap: boolean;
}

// Times are the server's, in seconds since 1970.
interface State {
  history: History;
  notifications: readonly Notification[];
  /** Undefined as long as nothing was cut. */
  back: Return | undefined;
  /** Of the newest value when the stream was lost; undefined while it runs. */
  lostAt: number | undefined;
  /** Values up to here are filled in. */
  fillUntil: number;
}

type Action =
  | { type: "lost" }
  | { type: "back"; now: number; gap: boolean }
  | { type: "samples"; samples: readonly Sample[] }
  | { type: "notifications"; notifications: readonly Notification[] };

const START: State = { history: [], notifications: [], back: undefined, lostAt: undefined, fillUntil: 0 };

function reduce(state: State, action: Action): State {
  switch (action.type) {
    case "lost": {
      const newest = state.history.at(-1)?.sample.time;
      return state.lostAt !== undefined || newest === undefined ? state : { ...state, lostAt: newest };
    }
    case "back": {
      if (state.lostAt === undefined) return state;
      const back = { seconds: Math.max(0, action.now - state.lostAt), filled: 0, gap: action.gap };
      return { ...state, back, lostAt: undefined, fillUntil: action.now };
    }
    case "samples": {
      let { history } = state;
      const late = action.samples.filter(({ time }) => time <= state.fillUntil);
      history = merge(history, late, true);
      const filled = history === state.history ? 0 : late.length;
      history = merge(history, action.samples.filter(({ time }) => time > state.fillUntil), false);
      if (history === state.history) return state;
      const back = state.back && { ...state.back, filled: state.back.filled + filled };
      return { ...state, history, back };
    }
    case "notifications": {
      const known = new Set(state.notifications.map(({ offset }) => offset));
      const added = action.notifications.filter(({ offset }) => !known.has(offset));
      if (added.length === 0) return state;
      const all = [...state.notifications, ...added].sort((one, other) => one.time - other.time);
      return { ...state, notifications: all.slice(-NOTIFICATIONS) };
    }
  }
}

export interface Dashboard {
  link: Link;
  error: Error | null;
  history: History;
  notifications: readonly Notification[];
  back: Return | undefined;
  lostAt: number | undefined;
  /** The server's clock, in seconds since 1970. */
  now: () => number;
  cut: () => void;
  restore: () => void;
}

export function useDashboard(): Dashboard {
  const [state, dispatch] = useReducer(reduce, START);
  const [url, setUrl] = useState<string | null>(EVENTS_URL);
  const [everLive, setEverLive] = useState(false);
  // How far this clock is ahead of the server's: the smallest delay seen.
  const ahead = useRef(Infinity);
  const now = useCallback(() => Date.now() / 1_000 - (ahead.current === Infinity ? 0 : ahead.current), []);

  const ask = useCallback(async () => {
    try {
      const response = await fetch(METRICS_URL);
      if (!response.ok) return;
      const { samples, notifications } = (await response.json()) as {
        samples: Sample[];
        notifications: Notification[];
      };
      dispatch({ type: "samples", samples });
      dispatch({ type: "notifications", notifications });
    } catch {
      // The stream shows the state of the server. When it reconnects, this is loaded again.
    }
  }, []);

  // The cursor for a stream that the page reopens itself.
  const cursor = useRef("");
  const { isConnected, error } = useSSE({
    url,
    events: EVENTS,
    onMessage: ({ event, data, lastEventId }) => {
      if (lastEventId !== "") cursor.current = lastEventId;
      if (event === "welcome") {
        const { recovered } = data as { recovered: boolean };
        dispatch({ type: "back", now: now(), gap: !recovered });
        if (!recovered) void ask();
      } else if (event === "sample") {
        const sample = data as Sample;
        ahead.current = Math.min(ahead.current, Date.now() / 1_000 - sample.time);
        dispatch({ type: "samples", samples: [sample] });
      } else {
        const notification = data as Omit<Notification, "offset">;
        dispatch({ type: "notifications", notifications: [{ ...notification, offset: lastEventId }] });
      }
    },
  });

  useEffect(() => {
    if (isConnected) setEverLive(true);
    else dispatch({ type: "lost" });
  }, [isConnected]);

  useEffect(() => {
    if (EVENTS_URL === null) void ask();
  }, [ask]);

  return {
    ...state,
    link: EVENTS_URL === null ? "off" : url === null ? "cut" : isConnected ? "live" : everLive ? "lost" : "connecting",
    error,
    now,
    cut: () => setUrl(null),
    restore: () => {
      if (EVENTS_URL === null) return;
      const resumed = new URL(EVENTS_URL);
      if (cursor.current !== "") resumed.searchParams.set("lastEventId", cursor.current);
      setUrl(resumed.href);
    },
  };
}
