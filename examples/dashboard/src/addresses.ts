// Where the server is: one level above the page, whatever the hub is mounted under.

const base = new URL("..", location.href);

export const EVENTS_URL = new URL("events/dashboard", base).href;
export const METRICS_URL = new URL("api/metrics", base).href;
export const NOTIFY_URL = new URL("api/notify", base).href;
