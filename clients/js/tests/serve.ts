// `crossband serve` on a free port, for tests of the client against the real server.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const OWN = fileURLToPath(new URL("../../../.venv/bin/crossband", import.meta.url));
export const COMMAND = existsSync(OWN) ? OWN : "crossband";
export const KEY = "key-of-the-test";

export interface Server {
  port: number;
  process: ChildProcess;
  stop(): Promise<void>;
}

interface Serving {
  port?: number;
  env?: Record<string, string>;
  /** The hub, as `crossband serve` takes it; the standalone hub if omitted. */
  target?: string;
  cwd?: string;
}

export async function start({ port = 0, env = {}, target, cwd }: Serving = {}): Promise<Server> {
  const args = ["serve", ...(target ? [target] : []), "--port", String(port), "--api-keys", KEY];
  const process_ = spawn(COMMAND, args, {
    ...(cwd && { cwd }),
    env: { ...process.env, NO_COLOR: "1", PYTHONUNBUFFERED: "1", ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const exited = once(process_, "exit");
  const stop = async (): Promise<void> => {
    process_.kill("SIGTERM");
    await exited;
  };
  for await (const line of createInterface(process_.stdout!)) {
    const match = /http:\/\/127\.0\.0\.1:(\d+)/.exec(line);
    if (match) {
      process_.stdout!.resume();
      process_.stderr!.resume();
      return { port: Number(match[1]), process: process_, stop };
    }
  }
  throw new Error("crossband serve ended before it served");
}
