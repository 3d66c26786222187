// The rooms: those this tab is in, and those it can join.
import type { State } from "./state";

export function Rooms({ state, onOpen }: { state: State; onOpen: (room: string) => void }) {
  return (
    <nav aria-labelledby="rooms-title">
      <h2 id="rooms-title">Rooms</h2>
      <ul className="dial">
        {state.rooms.map(({ name, topic }) => {
          const room = state.joined[name];
          const current = name === state.current;
          return (
            <li key={name}>
              <button
                type="button"
                aria-current={current ? "true" : undefined}
                title={topic}
                data-joined={room !== undefined}
                onClick={() => onOpen(name)}
              >
                <span className="room-name">{name}</span>
                {room === undefined ? (
                  <span className="aside">join</span>
                ) : room.unread > 0 ? (
                  <span className="badge" data-testid="unread">
                    {room.unread}
                    <span className="unseen"> unread</span>
                  </span>
                ) : null}
              </button>
            </li>
          );
        })}
      </ul>
    </nav>
  );
}
