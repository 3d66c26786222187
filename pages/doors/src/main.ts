// Wires the doors to their columns, the ledger and the scale.
import { Announcer } from "./announcer";
import { fillCommands } from "../../about";
import { base, told } from "./addresses";
import { startCensus } from "./census";
import { COPY, Column, gapText } from "./column";
import { DOORS, type Door, type DoorListener, type DoorName, type DoorState } from "./door";
import { EventSourceDoor } from "./eventsource";
import { Ledger } from "./ledger";
import { Scale } from "./scale";
import { SocketIODoor } from "./socketio";
import { WebSocketDoor } from "./websocket";

// Sent when the visitor types nothing: words whose order is easy to see.
const WORDS = (
  "Alfa Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike " +
  "November Oscar Papa Quebec Romeo Sierra Tango Uniform Victor Whiskey X-ray Yankee Zulu"
).split(" ");

// A replay is over when a door has been quiet for this long after it came back, in milliseconds.
const QUIET = 300;

interface Desk {
  door: Door;
  column: Column;
  state: DoorState;
  cursor: string;
  /** It has been connected at least once. */
  wasOpen: boolean;
  /** When the door went away; undefined while it is there. */
  awaySince: number | undefined;
  caughtUp: number;
  quietTimer: number;
}

const ledger = new Ledger();
const announcer = new Announcer(element("announcer"));
// The door of this page that a socket id belongs to. A door that started afresh has had several.
const owners = new Map<string, DoorName>();
const scale = new Scale(element("scale"), ledger.publications, ({ from }) => owners.get(from));
const census = startCensus(element("census"));
const desks = {} as Record<DoorName, Desk>;
let word = 0;

for (const name of DOORS) {
  const template = element("door") as HTMLTemplateElement;
  const column = new Column(name, template, {
    onToggle: () => toggle(name),
    onSend: (content) => void send(name, content),
  });
  element("doors").append(column.root);
  desks[name] = {
    door: openable(name, listenerOf(name)),
    column,
    state: "connecting",
    cursor: "",
    wasOpen: false,
    awaySince: undefined,
    caughtUp: 0,
    quietTimer: 0,
  };
}
fillCommands(told, base);
suggest();
for (const name of DOORS) {
  if (told.doors[name] === null) switchOff(name);
  else desks[name].door.open();
}

function openable(name: DoorName, listener: DoorListener): Door {
  switch (name) {
    case "socketio":
      return new SocketIODoor(listener);
    case "websocket":
      return new WebSocketDoor(listener);
    case "sse":
      return new EventSourceDoor(listener);
  }
}

function listenerOf(name: DoorName): DoorListener {
  return {
    onState: (state, detail) => changeState(name, state, detail),
    onTransport: (transport) => desks[name].column.setTransport(transport),
    onWelcome: ({ sid, recovered, cursor }) => {
      const desk = desks[name];
      owners.set(sid, name);
      ledger.enter(name, recovered);
      if (cursor !== undefined) setCursor(desk, cursor);
      if (recovered) {
        desk.caughtUp = 0;
        tellProgress(name);
        waitForQuiet(name);
      } else {
        desk.awaySince = undefined;
        desk.column.setNote("Listening.");
      }
      scale.update();
    },
    onMessage: (data, cursor) => hear(name, data, cursor),
    onGap: (gap) => {
      const { column } = desks[name];
      const lost = ledger.gap(name);
      setCursor(desks[name], gap.offset);
      column.tellGap(gap, lost);
      const count = lost.length === 0 ? "" : ` ${plural(lost.length)} will not be replayed.`;
      column.setNote(`Back, with a gap.${count}`, "gap");
      announcer.say(`${COPY[name].name}: gap, ${gapText(gap.reason)}${count}`);
      scale.update();
    },
    onError: (text) => desks[name].column.acknowledge(text, "failed"),
  };
}

function changeState(name: DoorName, state: DoorState, detail?: string): void {
  const desk = desks[name];
  const before = desk.state;
  // Before the first connection it is no reconnect.
  if (state === "reconnecting" && !desk.wasOpen) state = "connecting";
  desk.state = state;
  desk.wasOpen ||= state === "connected";
  desk.column.setState(state);
  scale.setState(name, state);
  if (state !== before) census.refresh();

  if (state === "connecting") {
    if (detail === undefined) desk.column.setNote("Opening the door…");
    else desk.column.setNote(`No answer yet. Still trying (${detail}).`, "error");
  } else if (state === "connected") {
    // Clear the note about the previous connection.
    desk.column.acknowledge("", "sent");
    announcer.say(`${COPY[name].name} connected.`);
  } else {
    clearTimeout(desk.quietTimer);
    desk.awaySince ??= performance.now();
    for (const publication of ledger.leave(name)) desk.column.miss(publication);
    tellAbsence(name, detail);
    if (state !== before) announcer.say(`${COPY[name].name} ${state === "cut" ? "cut off" : state}.`);
    scale.update();
  }
}

function hear(name: DoorName, data: unknown, cursor: string): void {
  const desk = desks[name];
  const { from, content } = parse(data);
  if (cursor !== "") setCursor(desk, cursor);
  const heard = ledger.hear(name, cursor, from, content);
  desk.column.setAlarm(ledger.doubled(name), ledger.misplaced(name));
  if (heard === undefined) return;

  const sender = owners.get(from);
  const senderName = sender === undefined ? visitorName(from) : COPY[sender].name;
  desk.column.hear(heard, sender, senderName);
  if (heard.isNew) {
    announcer.say(`${content}, from ${senderName}.`);
    for (const other of DOORS) {
      if (heard.publication.marks[other] !== "missed") continue;
      desks[other].column.miss(heard.publication);
      tellAbsence(other);
    }
  }
  if (heard.mark === "caught-up") {
    desk.caughtUp += 1;
    tellProgress(name);
  }
  if (desk.quietTimer !== 0) waitForQuiet(name);
  scale.update();
}

function tellAbsence(name: DoorName, detail?: string): void {
  const { column, state, cursor } = desks[name];
  const missed = ledger.missed(name);
  const gone = missed === 0 ? "" : ` ${plural(missed)} missed so far.`;
  const at = cursor === "" ? "" : ` at cursor ${cursor}`;
  if (state === "cut") column.setNote(`Cut${at}.${gone}`, "away");
  else if (state === "refused") column.setNote(`The server refused: ${detail ?? ""}`, "error");
  else if (detail === undefined) column.setNote(`Reconnecting${at}.${gone}`, "away");
  else column.setNote(`Connection lost${at} (${detail}). Still trying.${gone}`, "away");
}

/** Show how far a recovered door has caught up. */
function tellProgress(name: DoorName): void {
  const { column, awaySince, caughtUp } = desks[name];
  const seconds = awaySince === undefined ? 0 : (performance.now() - awaySince) / 1_000;
  const after = `Back after ${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s.`;
  if (caughtUp === 0) column.setNote(`${after} Nothing was missed.`);
  else column.setNote(`${after} ${plural(caughtUp)} caught up, in order.`, "caught-up");
}

function waitForQuiet(name: DoorName): void {
  const desk = desks[name];
  clearTimeout(desk.quietTimer);
  desk.quietTimer = window.setTimeout(() => {
    desk.quietTimer = 0;
    desk.awaySince = undefined;
    ledger.settle(name);
    if (desk.caughtUp > 0) {
      announcer.say(`${COPY[name].name} caught up with ${plural(desk.caughtUp)}.`);
    }
  }, QUIET);
}

/** Show a door that this server does not have. */
function switchOff(name: DoorName): void {
  desks[name].state = "off";
  desks[name].column.setState("off");
  desks[name].column.setNote("This door is switched off on this server.");
  scale.setState(name, "off");
}

function toggle(name: DoorName): void {
  const { door, state } = desks[name];
  if (state === "cut" || state === "refused") door.restore();
  else door.cut();
}

async function send(name: DoorName, content: string): Promise<void> {
  const { door, column } = desks[name];
  word += 1;
  suggest();
  column.acknowledge("Sent…", "sent");
  const start = performance.now();
  try {
    const answer = await door.send(content);
    const took = Math.max(1, Math.round(performance.now() - start));
    column.acknowledge(`Acknowledged in ${took} ms: ${JSON.stringify(answer)}`, "received");
  } catch (error) {
    column.acknowledge(`Not acknowledged: ${(error as Error).message}`, "failed");
  }
}

function suggest(): void {
  for (const name of DOORS) desks[name].column.suggestion = WORDS[word % WORDS.length] ?? "";
}

function setCursor(desk: Desk, cursor: string): void {
  desk.cursor = cursor;
  desk.column.setCursor(cursor);
}

/** Read a chat message; anything else that was published under its name is shown as it is. */
function parse(data: unknown): { from: string; content: string } {
  if (typeof data === "object" && data !== null) {
    const { from, content } = data as Record<string, unknown>;
    if (typeof content === "string") return { from: typeof from === "string" ? from : "", content };
  }
  return { from: "", content: typeof data === "string" ? data : JSON.stringify(data) };
}

function visitorName(sid: string): string {
  return sid === "" ? "published" : `visitor ${sid.replace(/^_/, "").slice(0, 4)}`;
}

function plural(count: number): string {
  return `${count} ${count === 1 ? "message" : "messages"}`;
}

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}
