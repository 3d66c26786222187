// The message box: Enter sends, Shift+Enter starts a new line.
import { type FormEvent, type KeyboardEvent, useEffect, useLayoutEffect, useRef, useState } from "react";

import type { Chat } from "./client";
import { lengthOf, list } from "./looks";
import type { Room, State } from "./state";

// The share of the longest message from which the remaining characters are shown.
const TELL = 0.8;

// Unsent text by room, restored when the user returns to the room.
const drafts = new Map<string, string>();

export function Composer({ chat, state, room }: { chat: Chat; state: State; room: Room }) {
  const [text, setText] = useState(drafts.get(room.name) ?? "");
  const box = useRef<HTMLTextAreaElement>(null);
  const limit = state.contentLength;
  const length = lengthOf(text.trim());
  const tooLong = length > limit;
  const sendable = length > 0 && !tooLong;

  useLayoutEffect(() => {
    const area = box.current;
    if (area === null) return;
    // As high as its text, up to the stylesheet's limit.
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
  }, [text]);
  useEffect(() => {
    // Only with a hardware keyboard. On a phone the keyboard would cover the room.
    if (matchMedia("(pointer: fine)").matches) box.current?.focus();
  }, []);

  function write(written: string): void {
    setText(written);
    drafts.set(room.name, written);
    chat.typing(written.trim() !== "");
  }

  function send(): void {
    if (!sendable) return;
    chat.send(text);
    setText("");
    drafts.delete(room.name);
    box.current?.focus();
  }

  function pressed(event: KeyboardEvent): void {
    // Enter also ends an IME composition.
    if (event.key !== "Enter" || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    send();
  }

  return (
    <form
      className="composer"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        send();
      }}
    >
      <TypingNotice room={room} />
      <label className="unseen" htmlFor="message">
        Message to {room.name}
      </label>
      <textarea
        id="message"
        ref={box}
        rows={1}
        dir="auto"
        enterKeyHint="send"
        placeholder={`Message to ${room.name}`}
        value={text}
        onChange={(event) => write(event.target.value)}
        onKeyDown={pressed}
        onBlur={() => chat.typing(false)}
        aria-describedby="length"
        aria-invalid={tooLong}
        data-testid="input"
      />
      <button type="submit" className="primary" aria-disabled={!sendable} data-testid="send">
        Send
      </button>
      <p className="length" id="length" data-over={tooLong} role={tooLong ? "alert" : undefined} data-testid="length">
        {tooLong ? (
          `This has ${length.toLocaleString()} characters. The limit is ${limit.toLocaleString()}: shorten it, or send it in parts.`
        ) : length > TELL * limit ? (
          `${(limit - length).toLocaleString()} characters left`
        ) : (
          <span className="hint">Enter sends, Shift+Enter starts a new line</span>
        )}
      </p>
    </form>
  );
}

function TypingNotice({ room }: { room: Room }) {
  const users = Array.from(room.typing.values(), ({ user }) => user);
  return (
    <p className="typing" role="status" data-testid="typing">
      {users.length > 0 && (
        <>
          <i className="pulse" aria-hidden="true" />
          {list(users)} {users.length === 1 ? "is" : "are"} typing
        </>
      )}
    </p>
  );
}
