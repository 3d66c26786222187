// Builds dist/: the two entry points, and (--mode single) the client as one minified file
// for pages without a bundler. The declarations are tsc's.
import { defineConfig } from "vite";

export default defineConfig(({ mode }) => {
  const single = mode === "single";
  return {
    build: {
      target: "es2022",
      emptyOutDir: !single,
      sourcemap: !single,
      lib: {
        entry: single ? { "crossband.min": "src/index.ts" } : { index: "src/index.ts", presence: "src/presence.ts", react: "src/react.ts" },
        formats: ["es"],
      },
      rolldownOptions: {
        external: ["react"],
        output: { minify: single, chunkFileNames: "core.js" },
      },
    },
  };
});
