import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/*.test.{ts,tsx}"],
    // Guards against hanging: those against the server start it, which takes a busy machine its time.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    restoreMocks: true,
    unstubGlobals: true,
  },
});
