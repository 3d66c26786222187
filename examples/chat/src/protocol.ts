// What goes over the wire: the events of src/crossband/demo/chat.py, as types.

export interface User {
  id: string;
  name: string;
  // A number from 0, unique in the chat.
  colour: number;
}

export interface Message {
  // Chosen by the sender; unique among that user's messages.
  id: string;
  room: string;
  user: User;
  content: string;
  // ISO 8601, by the server's clock.
  time: string;
}

export interface RoomInfo {
  name: string;
  topic: string;
}

/** The answer to `user:register`; lengths are in characters (code points). */
export interface Welcome {
  user: User;
  // Whoever presents it is this user: the page keeps it for its other tabs and for reconnects.
  key: string;
  rooms: RoomInfo[];
  nameLength: number;
  contentLength: number;
}

/** What presence tells of a user, beside the id. */
export interface Looks {
  name: string;
  colour: number;
}

export interface Typing {
  room: string;
  user: User;
  typing: boolean;
}

export interface Receipt {
  status: "received";
  id: string;
  time: string;
}

/** The answer to an event that failed, whatever the event. */
export interface Failure {
  code: string;
  error: string;
  reason?: string;
  // Seconds, with code "rate_limited".
  retryAfter?: number;
}

export interface ServerToClient {
  "user:typing": (typing: Typing) => void;
  "chat:message": (message: Message) => void;
  "server:shutdown": (notice: { message: string }) => void;
  gap: (gap: { reason: string }) => void;
}

export interface ClientToServer {
  "user:register": (
    user: { name: string; key?: string },
    answer: (welcome: Welcome | Failure) => void,
  ) => void;
  "room:join": (
    room: { room: string },
    answer: (state: { room: string; messages: Message[] } | Failure) => void,
  ) => void;
  "room:leave": (room: { room: string }, answer: (left: unknown) => void) => void;
  "chat:message": (
    draft: { room: string; content: string; id: string },
    answer: (receipt: Receipt | Failure) => void,
  ) => void;
  "chat:typing": (typing: { room: string; typing: boolean }) => void;
}

export function failed(answer: object): answer is Failure {
  return "error" in answer && "code" in answer;
}
