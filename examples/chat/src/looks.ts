// How names, times and texts are shown.
import type { User } from "./protocol";

// As many as the stylesheet has.
const COLOURS = 10;
const SHAPES = ["square", "round", "ring", "frame"] as const;

/** How a user's name and plate are drawn: by colour, and where the colours end by shape as well. */
export function looksOf({ colour }: User): { "data-colour": number; "data-shape": string } {
  return {
    "data-colour": colour % COLOURS,
    "data-shape": SHAPES[Math.floor(colour / COLOURS) % SHAPES.length] ?? SHAPES[0],
  };
}

const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** The first letter of a name, or its first emoji. */
export function initialOf({ name }: User): string {
  const [first] = graphemes.segment(name);
  return first?.segment.toLocaleUpperCase() ?? "?";
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const calendar = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });

export function timeOf(iso: string): string {
  return clock.format(new Date(iso));
}

export function dayOf(iso: string): string {
  return calendar.format(new Date(iso));
}

/** `Ada`, `Ada and Bo`, `Ada, Bo and 3 others`. */
export function list(users: readonly User[]): string {
  const names = users.map(({ name }) => isolate(name));
  if (names.length > 3) names.splice(2, names.length, `${users.length - 2} others`);
  const last = names.pop() ?? "";
  return names.length > 0 ? `${names.join(", ")} and ${last}` : last;
}

/** Keeps a name's direction of writing to itself (U+2068 and U+2069). */
function isolate(name: string): string {
  return `\u2068${name}\u2069`;
}

/** The length of a text as the server counts it: in code points. */
export function lengthOf(text: string): number {
  let length = text.length;
  for (let at = 0; at < text.length; at++) {
    if ((text.codePointAt(at) ?? 0) > 0xffff) {
      length--;
      at++;
    }
  }
  return length;
}

export interface Part {
  text: string;
  link: boolean;
}

const LINK = /https?:\/\/[^\s<>"']+/g;

/** Splits a text into links and what is between. */
export function parts(text: string): Part[] {
  const found: Part[] = [];
  let at = 0;
  for (const match of text.matchAll(LINK)) {
    // Punctuation at the end of a sentence is rarely part of the URL.
    const link = match[0].replace(/[.,;:!?)\]}]+$/, "");
    if (!URL.canParse(link)) continue;
    if (match.index > at) found.push({ text: text.slice(at, match.index), link: false });
    found.push({ text: link, link: true });
    at = match.index + link.length;
  }
  if (at < text.length) found.push({ text: text.slice(at), link: false });
  return found;
}
