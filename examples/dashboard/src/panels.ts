// What the four panels show of a sample. Only lines about a door have that door's colour.
import type { Line } from "./Chart";
import type { Reading, Sample } from "./samples";

export interface Panel {
  name: string;
  title: string;
  lines: readonly (Line & { read: Reading })[];
  /** Text beside the title, from the newest sample. */
  aside?: (sample: Sample) => string;
  /** For reading, with its unit. */
  format: (value: number) => string;
  /** For the axis, as short as possible. */
  tick: (value: number) => string;
  atLeast: number;
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;

const count = (value: number): string => (Number.isInteger(value) ? value.toLocaleString("en") : "");
const percent = (value: number): string => `${value < 10 ? value.toFixed(1) : Math.round(value)} %`;
const rate = (value: number): string =>
  value < 100 && !Number.isInteger(value) ? value.toFixed(1) : Math.round(value).toLocaleString("en");
const mebibytes = (value: number): string => `${(value / MIB).toFixed(value < 100 * MIB ? 1 : 0)} MiB`;

export const PANELS: readonly Panel[] = [
  {
    name: "cpu",
    title: "Processor",
    lines: [
      { label: "this server, of one core", color: "--ink", read: ({ cpu }) => cpu.server },
      { label: "machine", color: "--quiet", dashed: true, read: ({ cpu }) => cpu.machine },
    ],
    format: percent,
    tick: (value) => `${value} %`,
    atLeast: 10,
  },
  {
    name: "memory",
    title: "Memory",
    lines: [{ label: "this server", color: "--ink", read: ({ memory }) => memory.server }],
    aside: ({ memory: { machine, total } }) =>
      `machine: ${(machine / GIB).toFixed(1)} of ${(total / GIB).toFixed(1)} GiB`,
    format: mebibytes,
    tick: (value) => `${Math.round(value / MIB)} MiB`,
    atLeast: 64 * MIB,
  },
  {
    name: "clients",
    title: "Connections",
    lines: [
      { label: "WebSocket", color: "--websocket", read: ({ clients }) => clients.websocket },
      { label: "polling", color: "--socketio", dashed: true, read: ({ clients }) => clients.polling },
      { label: "event stream", color: "--sse", read: ({ clients }) => clients.sse },
    ],
    format: count,
    tick: count,
    atLeast: 4,
  },
  {
    name: "messages",
    title: "Messages per second",
    lines: [
      { label: "to clients", color: "--ink", read: ({ messages }) => messages.delivered },
      { label: "from clients", color: "--quiet", dashed: true, read: ({ messages }) => messages.received },
    ],
    aside: () => "this stream included",
    format: rate,
    tick: count,
    atLeast: 4,
  },
];
