// The server's URL: one level above the page, wherever the hub is mounted.
import { about, addressOf } from "../../../pages/about";

export const base = new URL("..", location.href);
export const { doors } = await about(base);

/** Null where the server has no event streams. */
export const EVENTS_URL = doors.sse === null ? null : `${addressOf(doors.sse, base).href}/dashboard`;
export const METRICS_URL = new URL("api/metrics", base).href;
export const NOTIFY_URL = new URL("api/notify", base).href;
