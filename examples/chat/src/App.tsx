// The page: signed out, a form; signed in, the rooms, the messages of one of them, and its users.
import { useEffect, useRef, useState, useSyncExternalStore } from "react";
import { createPortal } from "react-dom";

import { Composer } from "./Composer";
import { ConnectionLamp, ConnectionNotice } from "./Connection";
import { Log } from "./Log";
import { People } from "./People";
import { Rooms } from "./Rooms";
import { SignIn } from "./SignIn";
import type { Chat } from "./client";
import type { Room, State } from "./state";

export function App({ chat }: { chat: Chat }) {
  const state = useSyncExternalStore(chat.watch, chat.snapshot);
  const room = state.joined[state.current];
  useTitle(state, room);
  useEffect(() => {
    const look = () => {
      if (document.visibilityState === "visible") chat.looked();
    };
    document.addEventListener("visibilitychange", look);
    return () => document.removeEventListener("visibilitychange", look);
  }, [chat]);

  return (
    <>
      <Here chat={chat} state={state} />
      {state.me === null || room === undefined ? (
        <SignIn chat={chat} state={state} />
      ) : (
        <Conversation chat={chat} state={state} room={room} />
      )}
    </>
  );
}

// The header's own place for the page (pages/masthead.ts).
const here = document.getElementById("here");

function Here({ chat, state }: { chat: Chat; state: State }) {
  if (here === null) return null;
  return createPortal(
    <>
      <ConnectionLamp link={state.link} />
      {state.me !== null && (
        <div className="me">
          <span className="unseen">You are </span>
          <bdi data-testid="me" title={state.me.name}>
            {state.me.name}
          </bdi>
          <button type="button" className="quiet" onClick={() => chat.signOut()}>
            Sign out
          </button>
        </div>
      )}
    </>,
    here,
  );
}

function Conversation({ chat, state, room }: { chat: Chat; state: State; room: Room }) {
  // On a narrow screen the columns are sheets, opened one at a time.
  const [sheet, setSheet] = useState<"rooms" | "people" | null>(null);
  const elsewhere = Object.values(state.joined).reduce(
    (sum, { name, unread }) => (name === room.name ? sum : sum + unread),
    0,
  );
  return (
    <main className="chat" id="main">
      <h1 className="unseen">Chat</h1>
      <Sheet name="Rooms" className="rooms" open={sheet === "rooms"} onClose={() => setSheet(null)}>
        <Rooms
          state={state}
          onOpen={(name) => {
            chat.openRoom(name);
            setSheet(null);
          }}
        />
      </Sheet>
      <section className="room" aria-labelledby="room-name">
        <header>
          <button
            type="button"
            className="opener to-rooms"
            aria-haspopup="dialog"
            onClick={() => setSheet("rooms")}
          >
            Rooms
            {elsewhere > 0 && (
              <span className="badge">
                {elsewhere}
                <span className="unseen"> unread elsewhere</span>
              </span>
            )}
          </button>
          <div className="title">
            <h2 id="room-name">{room.name}</h2>
            <p>{room.topic}</p>
          </div>
          {Object.keys(state.joined).length > 1 && (
            <button type="button" className="quiet leave" onClick={() => void chat.leaveRoom(room.name)}>
              Leave<span className="unseen"> {room.name}</span>
            </button>
          )}
          <button
            type="button"
            className="opener to-people"
            aria-haspopup="dialog"
            onClick={() => setSheet("people")}
          >
            {room.users.size.toLocaleString()}
            <span className="unseen">{room.users.size === 1 ? " person" : " people"} here</span>
            <svg viewBox="0 0 20 20" aria-hidden="true">
              <circle cx="10" cy="6.5" r="3.5" />
              <path d="M3 18c0-4 3-6 7-6s7 2 7 6" />
            </svg>
          </button>
        </header>
        <ConnectionNotice link={state.link} onRetry={() => chat.reconnect()} />
        <Log key={room.name} chat={chat} room={room} me={state.me} />
        <Composer key={`to ${room.name}`} chat={chat} state={state} room={room} />
      </section>
      <Sheet name="People" className="people" open={sheet === "people"} onClose={() => setSheet(null)}>
        <People room={room} me={state.me} />
      </Sheet>
    </main>
  );
}

/** A column of the page where there is space for it, else a sheet over it. */
function Sheet(props: {
  name: string;
  className: string;
  open: boolean;
  onClose: () => void;
  children: React.ReactNode;
}) {
  const { name, className, open, onClose, children } = props;
  const dialog = useRef<HTMLDialogElement>(null);
  const narrow = useNarrow();
  useEffect(() => {
    if (!narrow && open) onClose();
    if (narrow && open) dialog.current?.showModal();
    else dialog.current?.close();
  }, [narrow, open, onClose]);
  if (!narrow) return <div className={`column ${className}`}>{children}</div>;
  return (
    <dialog
      ref={dialog}
      className={`sheet ${className}`}
      aria-label={name}
      onClose={onClose}
      onClick={(event) => {
        // Beside it.
        if (event.target === dialog.current) onClose();
      }}
    >
      <div className="inside">
        <button type="button" className="quiet close" onClick={onClose}>
          Close
        </button>
        {children}
      </div>
    </dialog>
  );
}

// As in style.css.
const narrow = matchMedia("(max-width: 860px)");

function useNarrow(): boolean {
  return useSyncExternalStore(
    (changed) => {
      narrow.addEventListener("change", changed);
      return () => narrow.removeEventListener("change", changed);
    },
    () => narrow.matches,
  );
}

function useTitle(state: State, room: Room | undefined): void {
  const unread = Object.values(state.joined).reduce((sum, each) => sum + each.unread, 0);
  const title = `${unread > 0 ? `(${unread}) ` : ""}${room === undefined ? "" : `${room.name} · `}Chat · Crossband`;
  useEffect(() => {
    document.title = title;
  }, [title]);
}
