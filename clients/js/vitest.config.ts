import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/*.test.{ts,tsx}"],
    // Those against the server wait for the network; the others take milliseconds.
    testTimeout: 20_000,
    hookTimeout: 20_000,
    restoreMocks: true,
    unstubGlobals: true,
  },
});
