// The users in a room. A thousand names work as well as three: the browser draws only those in sight.
import { memo, useMemo, useState } from "react";

import { initialOf, looksOf } from "./looks";
import type { User } from "./protocol";
import type { Room } from "./state";

// With more users than this there is a search box.
const MANY = 15;

const order = new Intl.Collator(undefined, { sensitivity: "base", numeric: true });

export function People({ room, me }: { room: Room; me: User | null }) {
  const [wanted, setWanted] = useState("");
  const sorted = useMemo(
    () => [...room.users.values()].sort((one, other) => order.compare(one.name, other.name)),
    [room.users],
  );
  const many = sorted.length > MANY;
  const needle = many ? wanted.trim().toLocaleLowerCase() : "";
  const shown = needle === "" ? sorted : sorted.filter(({ name }) => name.toLocaleLowerCase().includes(needle));
  return (
    <section aria-labelledby="people-title">
      <h2 id="people-title">
        People <span data-testid="total">{sorted.length.toLocaleString()}</span>
      </h2>
      {many && (
        <input
          type="search"
          className="find"
          placeholder="Find somebody"
          aria-label="Find somebody in this room"
          value={wanted}
          onChange={(event) => setWanted(event.target.value)}
        />
      )}
      <ul className="list" tabIndex={many ? 0 : undefined} aria-labelledby="people-title" data-testid="people">
        {shown.map((user) => (
          <Row key={user.id} user={user} mine={user.id === me?.id} />
        ))}
      </ul>
      {needle !== "" && shown.length === 0 && <p className="aside">Nobody with that name.</p>}
    </section>
  );
}

const Row = memo(function Row({ user, mine }: { user: User; mine: boolean }) {
  return (
    <li>
      <span className="plate" {...looksOf(user)} aria-hidden="true">
        {initialOf(user)}
      </span>
      <bdi title={user.name}>{user.name}</bdi>
      {mine && <span className="aside">you</span>}
    </li>
  );
});
