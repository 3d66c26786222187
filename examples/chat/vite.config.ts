// `npm run build` builds the page of `crossband demo` into the Python package; `npm run dist` builds
// it into dist/, for server.py here.
import react from "@vitejs/plugin-react";
import { defineConfig, loadEnv } from "vite";

import { masthead } from "../../pages/masthead";

export default defineConfig(({ mode }) => ({
  // Relative, so that the page works under any mount point.
  base: "./",
  plugins: [react(), masthead("chat", { alone: mode !== "demo" })],
  build: {
    outDir: mode === "demo" ? "../../src/crossband/pages/chat" : "dist",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
  },
  // `npm run dev` beside a server: CROSSBAND_URL says where, if not at port 8000.
  server: {
    proxy: {
      "/socket.io": {
        target: loadEnv(mode, ".", "CROSSBAND_")["CROSSBAND_URL"] ?? "http://127.0.0.1:8000",
        ws: true,
      },
    },
  },
}));
