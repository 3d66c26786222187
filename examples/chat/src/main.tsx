// The page begins here: one chat for its lifetime, and the components that show it.
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { about, addressOf } from "../../../pages/about";
import { App } from "./App";
import { Chat } from "./client";

const root = document.getElementById("root");
if (root === null) throw new Error("index.html has no #root");
// One level above the page, whatever the hub is mounted under.
const base = new URL("..", location.href);
const { socketio } = (await about(base)).doors;
const chat = new Chat(new URL(location.href), socketio && addressOf(socketio, base).pathname);
createRoot(root).render(
  <StrictMode>
    <App chat={chat} />
  </StrictMode>,
);
