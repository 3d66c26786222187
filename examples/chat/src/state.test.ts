import { expect, test } from "vitest";

import { lengthOf, list, parts } from "./looks";
import type { Message, User } from "./protocol";
import { type Action, type State, TYPING_TIME, initial, nextTick, reduce } from "./state";

const ada: User = { id: "a", name: "Ada", colour: 0 };
const bob: User = { id: "b", name: "Bob", colour: 1 };
const room = "general";

function message(id: string, user: User = ada): Message {
  return { id, room, user, content: id, time: "2026-01-01T12:00:00Z" };
}

function after(...actions: Action[]): State {
  const welcome = { user: bob, key: "k", rooms: [{ name: room, topic: "" }], nameLength: 40, contentLength: 4_000 };
  const joined: Action[] = [
    { type: "registered", welcome },
    { type: "joining", room },
    { type: "opened", room },
  ];
  return [...joined, ...actions].reduce(reduce, initial);
}

function shown(state: State): string[] {
  return (state.joined[room]?.entries ?? []).map((entry) =>
    entry.kind === "message" ? `${entry.message.id} ${entry.delivery.state}` : entry.kind,
  );
}

const heard = (id: string, user: User = ada): Action => ({ type: "message", message: message(id, user), seen: true });

test("a message that comes twice is shown once", () => {
  const state = after(heard("1"), heard("2"), heard("1"));
  expect(shown(state)).toEqual(["1 received", "2 received"]);
});

test("ids are each user's own", () => {
  expect(shown(after(heard("1", ada), heard("1", bob)))).toHaveLength(2);
});

test("what is not sent yet stays below what is heard", () => {
  const state = after({ type: "draft", message: message("mine", bob) }, heard("1"));
  expect(shown(state)).toEqual(["1 received", "mine sending"]);
  expect(shown(reduce(state, heard("mine", bob)))).toEqual(["1 received", "mine received"]);
});

test("history adds what is missing, and nothing twice", () => {
  const history: Action = { type: "history", room, messages: ["1", "2", "3"].map((id) => message(id)) };
  expect(shown(after(heard("1"), heard("2"), history))).toEqual(["1 received", "2 received", "3 received"]);
});

test("history that has nothing in common with the page is told as a gap", () => {
  const history: Action = { type: "history", room, messages: [message("8"), message("9")] };
  const draft: Action = { type: "draft", message: message("mine", bob) };
  expect(shown(after(heard("1"), draft, history))).toEqual([
    "1 received",
    "gap",
    "8 received",
    "9 received",
    "mine sending",
  ]);
});

test("typing is believed for three seconds, or until the message comes", () => {
  const typing: Action = { type: "typing", typing: { room, user: ada, typing: true }, now: 1_000 };
  const state = after(typing);
  expect(nextTick(state)).toBe(1_000 + TYPING_TIME);
  expect(reduce(state, { type: "tick", now: 3_999 }).joined[room]?.typing.size).toBe(1);
  expect(reduce(state, { type: "tick", now: 4_000 }).joined[room]?.typing.size).toBe(0);
  expect(reduce(state, heard("1")).joined[room]?.typing.size).toBe(0);
});

test("who is there first is not told of, who comes is, and who goes again leaves no trace", () => {
  const users = (...users: User[]): Action => ({ type: "users", room, users });
  const alone = after(users(bob));
  expect(shown(alone)).toEqual([]);
  const joined = reduce(alone, users(bob, ada));
  expect(shown(joined)).toEqual(["presence"]);
  expect(shown(reduce(joined, users(bob)))).toEqual([]);
  // As after a restart of the server, when they come back one after another.
  expect(shown([{ type: "not followed" } as Action, users(bob)].reduce(reduce, joined))).toEqual(["presence"]);
});

test("users know their own colour from the list", () => {
  expect(after({ type: "users", room, users: [{ ...bob, colour: 7 }] }).me?.colour).toBe(7);
});

test("unread counts what others said and nobody saw, once", () => {
  const unseen: Action = { type: "message", message: message("1"), seen: false };
  const own: Action = { type: "message", message: message("2", bob), seen: false };
  const state = after(unseen, unseen, own);
  expect(state.joined[room]?.unread).toBe(1);
  expect(reduce(state, { type: "opened", room }).joined[room]?.unread).toBe(0);
});

test("a message has as many characters as the server counts", () => {
  expect(lengthOf("a👩‍🚀é")).toBe([..."a👩‍🚀é"].length);
});

test("links end before the sentence does", () => {
  expect(parts("see https://example.com/a?b=c, or <b>")).toEqual([
    { text: "see ", link: false },
    { text: "https://example.com/a?b=c", link: true },
    { text: ", or <b>", link: false },
  ]);
  expect(parts("javascript:alert(1)")).toEqual([{ text: "javascript:alert(1)", link: false }]);
});

test("many names are summed up", () => {
  const users = ["A", "B", "C", "D"].map((name) => ({ id: name, name, colour: 0 }));
  expect(list(users).replace(/[\u2068\u2069]/g, "")).toBe("A, B and 2 others");
});
