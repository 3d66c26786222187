// Builds the page that `crossband demo` serves at `/doors/`, into the Python package.
import { defineConfig, loadEnv } from "vite";

import { masthead } from "../masthead";

export default defineConfig(({ mode }) => ({
  // Relative, so that the page works under any mount point.
  base: "./",
  plugins: [masthead("doors")],
  build: {
    outDir: "../../src/crossband/pages/doors",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
  },
  // `npm run dev` beside a hub: CROSSBAND_URL says where, if not at port 8000.
  server: {
    proxy: Object.fromEntries(
      ["/socket.io", "/ws", "/events", "/api"].map((path) => [
        path,
        { target: loadEnv(mode, ".", "CROSSBAND_")["CROSSBAND_URL"] ?? "http://127.0.0.1:8000", ws: true },
      ]),
    ),
  },
}));
