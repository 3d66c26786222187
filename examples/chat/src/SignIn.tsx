// The way in: a name.
import { type FormEvent, useState } from "react";

import { ConnectionNotice } from "./Connection";
import type { Chat } from "./client";
import { lengthOf } from "./looks";
import type { State } from "./state";

export function SignIn({ chat, state }: { chat: Chat; state: State }) {
  const [name, setName] = useState(chat.name);
  const length = lengthOf(name.trim());
  const tooLong =
    length > state.nameLength ? `A name has at most ${state.nameLength} characters; this has ${length}.` : "";
  const problem = tooLong || state.nameProblem;

  function submit(event: FormEvent): void {
    event.preventDefault();
    if (length > 0 && !tooLong) chat.signIn(name.trim());
  }

  return (
    <main className="sign-in" id="main">
      <ConnectionNotice link={state.link} onRetry={() => chat.reconnect()} />
      <form onSubmit={submit} autoComplete="off">
        <div className="wave" aria-hidden="true" />
        <h1>Join the conversation</h1>
        <p>
          Rooms, users and typing notices. Cut the network while you write: every message arrives once, when you
          are back.
        </p>
        <label htmlFor="name">Your name</label>
        <div className="field">
          <input
            id="name"
            value={name}
            onChange={(event) => setName(event.target.value)}
            autoComplete="nickname"
            dir="auto"
            autoFocus
            required
            aria-describedby="name-problem"
            aria-invalid={problem !== ""}
          />
          <button type="submit" className="primary" aria-disabled={length === 0 || tooLong !== ""}>
            {state.registering && state.link.state !== "connected" ? "Connecting …" : "Join"}
          </button>
        </div>
        <p className="problem" id="name-problem" role="alert">
          {problem}
        </p>
        <p className="tip">
          In another tab of this browser you are the same user. In a private window you are another one.
        </p>
      </form>
    </main>
  );
}
