// The page begins here: one chat for its lifetime, and the components that show it.
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

import { App } from "./App";
import { Chat } from "./client";

const root = document.getElementById("root");
if (root === null) throw new Error("index.html has no #root");
const chat = new Chat(new URL(location.href));
createRoot(root).render(
  <StrictMode>
    <App chat={chat} />
  </StrictMode>,
);
