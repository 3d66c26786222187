// The values of the last minutes, merged from the stream, its replay and the HTTP API.

/** The event `sample`. Times are in seconds since 1970, memory in bytes, cpu in percent. */
export interface Sample {
  time: number;
  cpu: { machine: number; server: number };
  memory: { machine: number; server: number; total: number };
  clients: { websocket: number; polling: number; sse: number };
  messages: { received: number; delivered: number };
}

export interface Entry {
  sample: Sample;
  /** It was measured while this page was cut off, and filled in afterwards. */
  filledIn: boolean;
}

/** In order of time. */
export type History = readonly Entry[];

/** Seconds that are shown. */
export const WINDOW = 300;
/** Values further apart than this, in seconds, have a hole between them. */
const HOLE = 2.5;

/** Add samples, each once; the history keeps those it has. */
export function merge(history: History, samples: readonly Sample[], filledIn: boolean): History {
  const last = history.at(-1);
  const known = new Set(history.map(({ sample }) => sample.time));
  const added = samples
    .filter(({ time }) => !known.has(time))
    .map((sample) => ({ sample, filledIn }));
  if (added.length === 0) return history;
  const merged = [...history, ...added];
  if (last !== undefined && added.some(({ sample }) => sample.time < last.sample.time)) {
    merged.sort((one, other) => one.sample.time - other.sample.time);
  }
  const newest = merged.at(-1)?.sample.time ?? 0;
  return merged.filter(({ sample }) => sample.time > newest - WINDOW);
}

export type Reading = (sample: Sample) => number;
export type Column = (number | null)[];

/** What the chart draws: the times, and a column for each reading; null where nothing is known. */
export function columns(history: History, readings: readonly Reading[]): [number[], ...Column[]] {
  const times: number[] = [];
  const values: Column[] = readings.map(() => []);
  let before: number | undefined;
  for (const { sample } of history) {
    if (before !== undefined && sample.time - before > HOLE) {
      times.push(before + 1);
      for (const column of values) column.push(null);
    }
    times.push(sample.time);
    readings.forEach((read, index) => values[index]?.push(read(sample)));
    before = sample.time;
  }
  return [times, ...values];
}

/** The stretches that were filled in, as times. */
export function stretches(history: History): [from: number, to: number][] {
  const found: [number, number][] = [];
  let open: [number, number] | undefined;
  for (const { sample, filledIn } of history) {
    if (!filledIn) open = undefined;
    else if (open !== undefined && sample.time - open[1] <= HOLE) open[1] = sample.time;
    else found.push((open = [sample.time, sample.time]));
  }
  return found;
}
