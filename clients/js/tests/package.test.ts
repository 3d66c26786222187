// What is published: its contents and its size. Builds nothing: `npm run build` comes first.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));
const read = (path: string): string => readFileSync(`${root}/${path}`, "utf8");

test("the client is at most 5 kB, minified and gzipped", () => {
  expect(gzipSync(read("dist/crossband.min.js"), { level: 9 }).length).toBeLessThanOrEqual(5_000);
});

test("it has no dependency, and only the hooks import React", () => {
  const { dependencies, peerDependencies } = JSON.parse(read("package.json"));
  expect([dependencies, Object.keys(peerDependencies)]).toEqual([undefined, ["react"]]);
  const imports = (path: string): string[] => [...read(path).matchAll(/ from "([^".]+)"/g)].map(([, name]) => name!);
  expect(["core", "index", "presence", "react"].map((name) => imports(`dist/${name}.js`))).toEqual([[], [], [], ["react"]]);
});

test("the package has the built files, their declarations, and what every package has", () => {
  const packed = execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"],
  });
  const files: string[] = JSON.parse(packed)[0].files.map(({ path }: { path: string }) => path);
  expect(files.filter((path) => !path.startsWith("dist/")).sort()).toEqual(["LICENSE", "README.md", "package.json"]);
  const { exports } = JSON.parse(read("package.json"));
  const named = Object.values(exports).flatMap((entry) => (typeof entry === "string" ? [entry] : Object.values(entry as object)));
  for (const path of named) expect(files).toContain(path.replace("./", ""));
  expect(files.filter((path) => !/\.(js|d\.ts|js\.map)$/.test(path) && path.startsWith("dist/"))).toEqual([]);
});
