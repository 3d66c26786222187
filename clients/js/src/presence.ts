// crossband/presence: who is in a room, kept current through lost connections and gaps.
// Over the client, and over socket.io-client; it knows neither.

/** The part of a socket that presence needs: Crossband's client and socket.io-client's have it. */
export interface PresenceSocket {
  readonly connected: boolean;
  readonly recovered: boolean;
  on(event: any, listener: (...args: any[]) => void): unknown;
  off(event: any, listener: (...args: any[]) => void): unknown;
  emitWithAck(event: any, ...args: any[]): Promise<any>;
}

/** A user, over all tabs, doors and nodes, or an anonymous client. */
export interface Member<Info = any> {
  /** The user, or the client's `id`, unless the server says otherwise. */
  id: string;
  /** What the server tells of it; null for nothing. */
  info: Info;
}

export interface Presence<Info = any> {
  /** In the order in which they joined. A new array after each change. */
  members: readonly Member<Info>[];
  /** Whether the members are known. Without a connection they are those of the last one. */
  isReady: boolean;
  /** Why they are not known, such as `forbidden` outside of the room; null otherwise. */
  error: (Error & { code?: string }) | null;
}

/** What an event or a page of members says. */
interface Change {
  room: string;
  member: Member;
}
interface Page {
  members: Member[];
  next: number | null;
  code?: string;
  error?: string;
}

// Milliseconds before a request that was refused is repeated; doubled each time.
const FIRST_WAIT = 500;
const LONGEST_WAIT = 30_000;
// Answers that will not change.
const FINAL = /^(not_found|unknown_event|invalid_message)$/;

/**
 * Watch who is in a room: the listener gets the members when they are known, and after each change.
 * Returns a function that stops. The client must be in the room; if it is not yet, this waits.
 */
export function watchPresence<Info = any>(
  socket: PresenceSocket,
  room: string,
  listener: (presence: Presence<Info>) => void,
): () => void {
  let members = new Map<string, Member<Info>>();
  let isReady = false;
  // What came since the members were asked for; undefined while nobody asks.
  let news: [string, Member<Info>][] | undefined;
  // Counts requests, so that the answer to an earlier one is recognized.
  let request = 0;
  let failures = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;

  function tell(error: Presence["error"] = null): void {
    listener({ members: [...members.values()], isReady, error });
  }

  /** Ask for all members. The events since then say what has changed: each says all of its member. */
  async function ask(): Promise<void> {
    const own = ++request;
    const since: [string, Member<Info>][] = (news = []);
    clearTimeout(timer);
    const found = new Map<string, Member<Info>>();
    try {
      for (let after: number | null = 0; after !== null; ) {
        const page: Page = await socket.emitWithAck("presence:members", { room, after });
        if (own !== request) return;
        // As socket.io-client gets an error.
        if (page.code) throw Object.assign(new Error(page.error), { code: page.code });
        for (const member of page.members) {
          // Who left and came back meanwhile is on two pages.
          found.delete(member.id);
          found.set(member.id, member);
        }
        after = page.next;
      }
    } catch (error) {
      if (own === request) failed(error as Error);
      return;
    }
    for (const [event, member] of since) apply(found, event, member);
    news = undefined;
    members = found;
    isReady = true;
    failures = 0;
    tell();
  }

  function failed(error: Error & { code?: string }): void {
    news = undefined;
    // Without a connection, it is asked again with the next one.
    if (!socket.connected) {
      isReady = false;
      return;
    }
    const wait = Math.min(FIRST_WAIT * 2 ** failures++, LONGEST_WAIT);
    if (!FINAL.test(error.code ?? "")) timer = setTimeout(ask, wait);
    isReady = false;
    tell(error);
  }

  function changed(event: string, { room: where, member }: Change): void {
    if (where !== room) return;
    if (news) news.push([event, member]);
    // The client is in the room by now.
    else if (!isReady) void ask();
    else {
      apply(members, event, member);
      tell();
    }
  }

  const listeners: Record<string, (data: any) => void> = {
    // What was missed follows, unless the connection was lost while the members were asked for.
    connect: () => (socket.recovered && isReady && !news) || void ask(),
    gap: () => void ask(),
    "presence:join": (data) => changed("join", data),
    "presence:update": (data) => changed("update", data),
    "presence:leave": (data) => changed("leave", data),
  };
  for (const [event, call] of Object.entries(listeners)) socket.on(event, call);
  if (socket.connected) void ask();

  return () => {
    request += 1;
    clearTimeout(timer);
    for (const [event, call] of Object.entries(listeners)) socket.off(event, call);
  };
}

function apply<Info>(members: Map<string, Member<Info>>, event: string, member: Member<Info>): void {
  if (event === "leave") members.delete(member.id);
  // An answer over HTTP may be ahead of the stream: who is known already keeps the place.
  else members.set(member.id, member);
}
