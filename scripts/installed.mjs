// Runs before the scripts of every package.json: says what they need, where npm would say that
// it does not find `vite`.

import { existsSync } from "node:fs";

const NEEDED = [22, 12];
const [major, minor] = process.versions.node.split(".").map(Number);

if (major < NEEDED[0] || (major === NEEDED[0] && minor < NEEDED[1])) {
  console.error(`This needs Node.js ${NEEDED.join(".")} or later, and this is ${process.version}: "make build" brings one.`);
  process.exit(1);
}
if (!existsSync(new URL("../node_modules/.bin/vite", import.meta.url))) {
  console.error('The packages are not installed: run "npm ci" in the root folder first, or "make build", which does it all.');
  process.exit(1);
}
