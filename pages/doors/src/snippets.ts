// Code for each door that visitors can copy, with the URLs of this hub.
import { base, eventsUrl, socketioPath, websocketUrl } from "./addresses";
import type { DoorName } from "./door";

export const snippets: Record<DoorName, string> = {
  socketio: `
import { io } from "socket.io-client";

const socket = io("${base.origin}", {
  path: "${socketioPath()}",
});

socket.on("chat:message", ({ from, content }) =>
  show(from, content));

const say = (content) =>
  socket.emit("chat:message", { content });

// Reconnects, and sends its cursor:
socket.on("connect", () =>
  log(socket.recovered));
`,
  websocket: `
const door = "${websocketUrl()}";
let ws, session, resume = "";

function open() {
  ws = new WebSocket(door + resume);
  ws.onclose = () => setTimeout(open, 1000);
  ws.onmessage = (message) => {
    const event = JSON.parse(message.data);
    session = event.session ?? session;
    if (event.offset)
      resume = "?session=" + session
        + "&lastEventId=" + event.offset;
    if (event.type === "chat:message")
      show(event.data.from, event.data.content);
  };
}
open();

const say = (content) =>
  ws.send(JSON.stringify({
    type: "chat:message", data: { content },
  }));
`,
  sse: `
const door = "${eventsUrl()}";
const key = crypto.randomUUID();
const events = new EventSource(
  door + "?session=" + key);
let sid;

const on = (name, hear) =>
  events.addEventListener(name, (event) =>
    hear(JSON.parse(event.data)));
on("welcome", (data) => sid = data.sid);
on("chat:message", ({ from, content }) =>
  show(from, content));

// Reconnects, and sends its cursor.
// To send, POST:
const say = (content) => fetch(
  \`\${door}/\${sid}?session=\${key}\`, {
    method: "POST",
    body: JSON.stringify({
      type: "chat:message", data: { content },
    }),
  });
`,
};

// A comment to the end of its line, or a quoted string. `://` is no comment.
const TOKEN = /(?<comment>(?<!:)\/\/.*$)|(?<string>"[^"\n]*"|'[^'\n]*'|`[^`\n]*`)/gm;

/** Render a snippet with its comments and strings marked. */
export function highlight(code: string): DocumentFragment {
  const fragment = document.createDocumentFragment();
  let end = 0;
  for (const match of code.matchAll(TOKEN)) {
    fragment.append(code.slice(end, match.index));
    const span = document.createElement("span");
    span.className = match.groups?.["comment"] === undefined ? "string" : "comment";
    span.textContent = match[0];
    fragment.append(span);
    end = match.index + match[0].length;
  }
  fragment.append(code.slice(end));
  return fragment;
}
