import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["tests/*.test.{ts,tsx}"],
    // Guards against hanging: some tests start the server, which may be slow on a busy machine.
    testTimeout: 120_000,
    hookTimeout: 120_000,
    restoreMocks: true,
    unstubGlobals: true,
  },
});
