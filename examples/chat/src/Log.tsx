// The messages of a room, and who joined and left.
import { Fragment, memo, useEffect, useLayoutEffect, useRef, useState } from "react";

import type { Chat } from "./client";
import { dayOf, initialOf, list, looksOf, parts, timeOf } from "./looks";
import type { Message, User } from "./protocol";
import type { Delivery, Entry, Room } from "./state";

// Within this many pixels of its end, the log follows new entries.
const NEAR = 80;
// Messages of one user within this many milliseconds share one heading.
const TOGETHER = 5 * 60_000;

export function Log({ chat, room, me }: { chat: Chat; room: Room; me: User | null }) {
  const { entries } = room;
  const log = useRef<HTMLDivElement>(null);
  const following = useRef(true);
  const [behind, setBehind] = useState(false);
  const last = entries.at(-1);
  const mine = last?.kind === "message" && last.delivery.state === "sending";

  useLayoutEffect(() => {
    // Scroll to one's own message, but do not move a reader who has scrolled up.
    if (following.current || mine) toEnd(log.current);
    else setBehind(true);
  }, [last?.key, entries.length, mine]);
  useEffect(() => {
    // The keyboard of a phone takes half of the screen.
    const resized = new ResizeObserver(() => {
      if (following.current) toEnd(log.current);
    });
    if (log.current !== null) resized.observe(log.current);
    return () => resized.disconnect();
  }, []);

  function scrolled({ currentTarget: { scrollHeight, scrollTop, clientHeight } }: React.UIEvent): void {
    following.current = scrollHeight - scrollTop - clientHeight < NEAR;
    if (following.current) setBehind(false);
  }

  return (
    <div className="log-frame">
      <div
        className="log"
        role="log"
        aria-label={`Messages in ${room.name}`}
        aria-busy={room.state === "joining"}
        tabIndex={0}
        ref={log}
        onScroll={scrolled}
        data-testid="log"
      >
        {entries.every(({ kind }) => kind === "presence") && <Empty chat={chat} room={room} />}
        <ol>
          {entries.map((entry, index) => (
            <Fragment key={entry.key}>
              {startsDay(entries, index) && <li className="day">{dayOf((entry as MessageEntry).message.time)}</li>}
              {entry.kind === "message" ? (
                <Line
                  chat={chat}
                  message={entry.message}
                  delivery={entry.delivery}
                  mine={entry.message.user.id === me?.id}
                  continues={continues(entries, index)}
                />
              ) : (
                <Notice entry={entry} />
              )}
            </Fragment>
          ))}
        </ol>
      </div>
      {behind && (
        <button type="button" className="to-end" onClick={() => toEnd(log.current)}>
          New messages below
        </button>
      )}
    </div>
  );
}

type MessageEntry = Extract<Entry, { kind: "message" }>;

function toEnd(log: HTMLElement | null): void {
  log?.scrollTo({ top: log.scrollHeight });
}

function before(entries: readonly Entry[], index: number): Message | undefined {
  for (let at = index - 1; at >= 0; at--) {
    const entry = entries[at];
    if (entry?.kind === "message") return entry.message;
  }
  return undefined;
}

function startsDay(entries: readonly Entry[], index: number): boolean {
  const entry = entries[index];
  if (entry?.kind !== "message") return false;
  const previous = before(entries, index);
  return previous === undefined || dayOf(previous.time) !== dayOf(entry.message.time);
}

function continues(entries: readonly Entry[], index: number): boolean {
  const entry = entries[index];
  const previous = entries[index - 1];
  return (
    entry?.kind === "message" &&
    previous?.kind === "message" &&
    previous.message.user.id === entry.message.user.id &&
    Date.parse(entry.message.time) - Date.parse(previous.message.time) < TOGETHER &&
    !startsDay(entries, index)
  );
}

function Empty({ chat, room }: { chat: Chat; room: Room }) {
  if (room.state === "failed") {
    return (
      <div className="empty" role="alert">
        <p>{room.problem}</p>
        <button type="button" onClick={() => chat.openRoom(room.name)}>
          Try again
        </button>
      </div>
    );
  }
  return (
    <p className="empty" data-testid="empty">
      {room.state === "joining" ? `Joining ${room.name} …` : "Nobody has said anything here yet. Be the first."}
    </p>
  );
}

function Notice({ entry }: { entry: Exclude<Entry, { kind: "message" }> }) {
  if (entry.kind === "gap") {
    return (
      <li className="event gap" data-testid="gap">
        Messages may be missing here.
      </li>
    );
  }
  const { joined, left } = entry;
  return (
    <li className="event" data-testid="presence">
      {joined.length > 0 && `${list(joined)} joined`}
      {joined.length > 0 && left.length > 0 && ", "}
      {left.length > 0 && `${list(left)} left`}
    </li>
  );
}

const Line = memo(function Line(props: {
  chat: Chat;
  message: Message;
  delivery: Delivery;
  mine: boolean;
  continues: boolean;
}) {
  const { chat, message, delivery, mine, continues } = props;
  const { user, content, time } = message;
  return (
    <li
      className="message"
      data-testid="message"
      {...looksOf(user)}
      data-mine={mine}
      data-continues={continues}
      data-delivery={delivery.state}
    >
      {!continues && (
        <span className="plate" {...looksOf(user)} aria-hidden="true">
          {initialOf(user)}
        </span>
      )}
      <p className={continues ? "byline unseen" : "byline"}>
        <bdi className="sender" title={user.name}>
          {user.name}
        </bdi>
        {mine && <span className="unseen"> (you)</span>}
      </p>
      <time dateTime={time}>
        {delivery.state === "sending" ? <span className="sending">not sent yet</span> : timeOf(time)}
      </time>
      <p className="content" dir="auto">
        {parts(content).map((part, index) =>
          part.link ? (
            <a key={index} href={part.text} target="_blank" rel="noopener noreferrer nofollow">
              {part.text}
            </a>
          ) : (
            part.text
          ),
        )}
      </p>
      {(delivery.state === "slowed" || delivery.state === "failed") && <DeliveryNote chat={chat} message={message} delivery={delivery} />}
    </li>
  );
});

function DeliveryNote(props: {
  chat: Chat;
  message: Message;
  delivery: Extract<Delivery, { state: "slowed" | "failed" }>;
}) {
  const { chat, message, delivery } = props;
  if (delivery.state === "slowed") {
    return (
      <p className="delivery slowed" role="status">
        That was quick! This one goes out by itself <Countdown until={delivery.until} />.
      </p>
    );
  }
  return (
    <p className="delivery failed" role="alert">
      Not sent. {delivery.reason}{" "}
      <button type="button" className="quiet" onClick={() => chat.withdraw(message)}>
        Remove
      </button>
    </p>
  );
}

/** `in 3 s`, then `now`. */
function Countdown({ until }: { until: number }) {
  const [now, setNow] = useState(() => Date.now());
  const seconds = Math.ceil((until - now) / 1_000);
  useEffect(() => {
    if (until <= now) return;
    const timer = setTimeout(() => setNow(Date.now()), 250);
    return () => clearTimeout(timer);
  }, [until, now]);
  return <span aria-hidden="true">{seconds > 0 ? `in ${seconds} s` : "now"}</span>;
}
