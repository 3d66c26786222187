// Builds the page that `crossband demo` serves at `/dashboard/`, into the Python package.
import react from "@vitejs/plugin-react";
import { defineConfig, loadEnv } from "vite";

import { masthead } from "../../pages/masthead";

export default defineConfig(({ mode }) => ({
  plugins: [react(), masthead("dashboard")],
  // Relative, so that the page works under any mount point.
  base: "./",
  build: {
    outDir: "../../src/crossband/pages/dashboard",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
  },
  // `npm run dev` beside a server: CROSSBAND_URL says where, if not at port 8000.
  server: {
    proxy: Object.fromEntries(
      ["/events", "/api"].map((path) => [
        path,
        loadEnv(mode, ".", "CROSSBAND_")["CROSSBAND_URL"] ?? "http://127.0.0.1:8000",
      ]),
    ),
  },
}));
