// The newest values as a table, for users who cannot see the charts, and for copying.
import { useEffect, useRef, useState } from "react";
import { PANELS } from "./panels";
import type { History } from "./samples";

const ROWS = 30;

export function Table({ history }: { history: History }): React.ReactElement {
  // A closed table is not rendered every second.
  const [open, setOpen] = useState(false);
  const frame = useRef<HTMLDivElement>(null);
  // Whether some columns are out of sight.
  const [wide, setWide] = useState(false);
  useEffect(() => {
    const element = frame.current;
    if (element === null) return undefined;
    const resized = new ResizeObserver(() => setWide(element.scrollWidth > element.clientWidth));
    resized.observe(element);
    return () => resized.disconnect();
  }, [open]);
  return (
    <details className="table" onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>The newest values as a table</summary>
      {open && (
        <>
          <p className="hint" hidden={!wide}>
            Scroll sideways for all {PANELS.flatMap(({ lines }) => lines).length + 1} columns.
          </p>
          <div className="scroll" ref={frame} tabIndex={0} role="region" aria-label="The newest values">
            <table>
              <thead>
                <tr>
                  <th scope="col">Time</th>
                  {PANELS.flatMap(({ title, lines }) =>
                    lines.map(({ label }) => (
                      <th scope="col" key={title + label}>
                        {title}: {label}
                      </th>
                    )),
                  )}
                </tr>
              </thead>
              <tbody>
                {history
                  .slice(-ROWS)
                  .reverse()
                  .map(({ sample, filledIn }) => (
                    <tr key={sample.time} data-filled-in={filledIn}>
                      <th scope="row">
                        {new Date(sample.time * 1_000).toLocaleTimeString()}
                        {filledIn && " (filled in)"}
                      </th>
                      {PANELS.flatMap(({ name, lines, format }) =>
                        lines.map(({ label, read }) => <td key={name + label}>{format(read(sample))}</td>),
                      )}
                    </tr>
                  ))}
              </tbody>
            </table>
          </div>
        </>
      )}
    </details>
  );
}
