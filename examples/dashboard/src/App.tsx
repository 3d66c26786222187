// The page: the state of the stream, four panels, the notifications.
import { useEffect, useMemo, useState } from "react";
import { Chart } from "./Chart";
import { Notifications } from "./Notifications";
import { PANELS, type Panel } from "./panels";
import { type History, type Sample, WINDOW, columns, stretches } from "./samples";
import { Status } from "./Status";
import { Table } from "./Table";
import { Traffic } from "./Traffic";
import { doors } from "./addresses";
import { useDashboard } from "./useDashboard";

// Least number of seconds shown.
const LEAST = 60;

export function App(): React.ReactElement {
  const dashboard = useDashboard();
  const { history, link, lostAt, now } = dashboard;
  const [pointed, setPointed] = useState<number | null>(null);
  const end = useEnd(history, lostAt, now);
  // Do not squeeze the few values of a new server into a corner.
  const begin = Math.max(end - WINDOW, Math.min(history[0]?.sample.time ?? end, end - LEAST));
  const marks = useMemo(() => stretches(history), [history]);
  const newest = history.at(-1)?.sample;

  return (
    <>
      <div className="intro">
        <h1>Dashboard</h1>
        <p className="what">This server measures itself once a second and sends the values as Server-Sent Events.</p>
        {doors.websocket !== null && <Traffic />}
      </div>
      <main id="main" data-link={link} data-testid="dashboard">
        <Status {...dashboard} />
        <div className="panels" id="panels" data-stale={link !== "live"}>
          {PANELS.map((panel) => (
            <Meter
              key={panel.name}
              panel={panel}
              history={history}
              marks={marks}
              lostAt={lostAt}
              begin={begin}
              end={end}
              pointed={pointed}
              onPoint={setPointed}
              newest={newest}
            />
          ))}
          <Table history={history} />
        </div>
        <Notifications notifications={dashboard.notifications} />
      </main>
    </>
  );
}

interface MeterProps {
  panel: Panel;
  history: History;
  marks: readonly [number, number][];
  lostAt: number | undefined;
  begin: number;
  end: number;
  pointed: number | null;
  onPoint: (index: number | null) => void;
  newest: Sample | undefined;
}

function Meter({ panel, history, marks, lostAt, begin, end, pointed, onPoint, newest }: MeterProps): React.ReactElement {
  const data = useMemo(() => columns(history, panel.lines.map(({ read }) => read)), [history, panel]);
  const at = pointed ?? data[0].length - 1;
  const values = panel.lines.map((_, line) => data[line + 1]?.[at] ?? null);
  const shown = (value: number | null): string => (value === null ? "–" : panel.format(value));
  const summary = panel.lines.map(({ label }, line) => `${label} ${shown(values[line] ?? null)}`).join(", ");
  return (
    <section className="panel" aria-labelledby={`${panel.name}-title`} data-testid={`panel-${panel.name}`}>
      <header>
        <h2 id={`${panel.name}-title`}>{panel.title}</h2>
        {panel.aside && newest && <span className="aside">{panel.aside(newest)}</span>}
      </header>
      <dl className="readings">
        {panel.lines.map(({ label, color, dashed }, line) => (
          <div key={label}>
            <dt>
              <i
                className="key"
                data-dashed={dashed === true}
                ref={(key) => key?.style.setProperty("--line", `var(${color})`)}
              />
              {label}
            </dt>
            <dd data-testid={`${panel.name}-${line}`}>{shown(values[line] ?? null)}</dd>
          </div>
        ))}
      </dl>
      {history.length === 0 ? (
        <p className="empty">Waiting for the first value…</p>
      ) : (
        <Chart
          lines={panel.lines}
          data={data}
          begin={begin}
          end={end}
          marks={marks}
          lostAt={lostAt}
          atLeast={panel.atLeast}
          format={panel.tick}
          label={`${panel.title}, the last minutes: ${summary}`}
          onPoint={onPoint}
        />
      )}
    </section>
  );
}

/** The charts' right edge: the newest value, or now while none comes. */
function useEnd(history: History, lostAt: number | undefined, now: () => number): number {
  const [, setTick] = useState(0);
  useEffect(() => {
    if (lostAt === undefined) return undefined;
    const timer = setInterval(() => setTick((tick) => tick + 1), 1_000);
    return () => clearInterval(timer);
  }, [lostAt]);
  const newest = history.at(-1)?.sample.time ?? now();
  return lostAt === undefined ? newest : Math.max(newest, now());
}
