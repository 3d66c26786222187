// Builds the page that `crossband demo` serves at `/`, into the Python package.
import { defineConfig, loadEnv } from "vite";

import { masthead } from "../masthead";

export default defineConfig(({ mode }) => ({
  // Relative, so that the page works under any mount point.
  base: "./",
  plugins: [masthead("start")],
  build: {
    outDir: "../../src/crossband/pages/start",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
  },
  // `npm run dev` beside a demo: CROSSBAND_URL says where, if not at port 8000.
  server: {
    proxy: Object.fromEntries(
      ["/api", "/chat", "/dashboard", "/doors"].map((path) => [
        path,
        loadEnv(mode, ".", "CROSSBAND_")["CROSSBAND_URL"] ?? "http://127.0.0.1:8000",
      ]),
    ),
  },
}));
