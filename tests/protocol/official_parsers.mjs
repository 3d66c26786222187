// Reads polling bodies (a JSON array of strings) from stdin, decodes each with the official
// parsers, encodes what it read again, and answers [{packets, body}].
import { text } from "node:stream/consumers";
import { decodePayload, encodePayload } from "engine.io-parser";
import { Decoder, Encoder } from "socket.io-parser";

const visible = (value) => {
  if (Buffer.isBuffer(value)) return { $binary: value.toString("base64") };
  if (Array.isArray(value)) return value.map(visible);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, visible(item)]));
};

const judge = async (body) => {
  const packets = [];
  const decoder = new Decoder();
  decoder.on("decoded", (packet) => packets.push(packet));
  for (const { type, data } of decodePayload(body, "nodebuffer")) {
    if (type !== "message") throw new Error(`${type}: ${data}`);
    decoder.add(data);
  }
  const seen = packets.map(({ type, nsp, id, data }) => ({ type, nsp, id, data: visible(data) }));
  const messages = packets.flatMap((packet) => new Encoder().encode(packet));
  const encoded = await new Promise((resolve) => {
    encodePayload(messages.map((data) => ({ type: "message", data })), resolve);
  });
  return { packets: seen, body: encoded };
};

const bodies = JSON.parse(await text(process.stdin));
console.log(JSON.stringify(await Promise.all(bodies.map(judge))));
