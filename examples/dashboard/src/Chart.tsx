// A line chart of the last minutes, drawn by uPlot in the colours of the page's stylesheet.
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

export interface Line {
  label: string;
  /** A colour variable of the stylesheet, such as "--sse". */
  color: string;
  dashed?: boolean;
}

interface Props {
  lines: readonly Line[];
  data: uPlot.AlignedData;
  /** The edges, in seconds since 1970. */
  begin: number;
  end: number;
  /** Stretches to mark. */
  marks: readonly [from: number, to: number][];
  /** When the data stopped, if it did. */
  lostAt: number | undefined;
  /** The least upper end of the scale. */
  atLeast: number;
  format: (value: number) => string;
  label: string;
  /** Called with the index of the value under the pointer, or null. */
  onPoint: (index: number | null) => void;
}

// CSS pixels.
const HEIGHT = 154;
// Least width: half of a time label, under the left edge, must fit.
const AXIS_WIDTH = 40;
// Room for half of a time label under the right edge.
const RIGHT = 30;
// The lowest label is half below the bottom edge: keep the times clear of it.
const GAP = 9;

export function Chart(props: Props): React.ReactElement {
  const place = useRef<HTMLDivElement>(null);
  const chart = useRef<uPlot>(undefined);
  // The chart's own functions read this when it draws.
  const newest = useRef(props);
  newest.current = props;
  const { lines, data, end, marks, lostAt, label } = props;

  useEffect(() => {
    const element = place.current;
    if (element === null) return undefined;
    const color = (name: string): string => getComputedStyle(element).getPropertyValue(name);
    const font = `11px ${color("--sans")}`;
    const axis: uPlot.Axis = {
      stroke: () => color("--quiet"),
      font,
      ticks: { show: false },
      grid: { stroke: () => color("--hair"), width: 1 },
    };
    const plot = new uPlot(
      {
        width: element.clientWidth,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, RIGHT, 0, 0],
        cursor: {
          y: false,
          drag: { setScale: false, x: false, y: false },
          points: { size: 7 },
          sync: { key: "dashboard" },
        },
        scales: {
          x: { time: true, range: () => [newest.current.begin, newest.current.end] },
          y: { range: (_, __, max) => [0, Math.max(newest.current.atLeast, (max ?? 0) * 1.1)] },
        },
        axes: [
          { ...axis, space: 72, size: 32, gap: GAP, incrs: [10, 15, 30, 60, 120], values: (_, times) => times.map(clock) },
          {
            ...axis,
            space: 34,
            size: widthOf,
            values: (_, values) => values.map((value) => newest.current.format(value)),
          },
        ],
        series: [
          {},
          ...lines.map(
            (line): uPlot.Series => ({
              label: line.label,
              stroke: () => color(line.color),
              width: 1.75,
              ...(line.dashed === true && { dash: [5, 4] }),
              points: { show: false },
              spanGaps: false,
            }),
          ),
        ],
        hooks: {
          drawClear: [(plot) => drawMarks(plot, newest.current, color)],
          setCursor: [(plot) => newest.current.onPoint(plot.cursor.idx ?? null)],
        },
      },
      newest.current.data,
      element,
    );
    chart.current = plot;
    const resized = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const redraw = (): void => plot.redraw(false, true);
    dark.addEventListener("change", redraw);
    return () => {
      dark.removeEventListener("change", redraw);
      resized.disconnect();
      plot.destroy();
      chart.current = undefined;
    };
  }, [lines]);

  // `end` also moves while no value arrives.
  useEffect(() => chart.current?.setData(data), [data, end, marks, lostAt]);

  return <div className="chart" ref={place} role="img" aria-label={label} />;
}

/** Return the width of an axis that fits its longest label, in CSS pixels. */
function widthOf(plot: uPlot, labels: string[] | null, index: number): number {
  const { font, gap = 0 } = plot.axes[index] ?? {};
  // uPlot has turned it into a list: the font at this screen's scale comes first.
  plot.ctx.font = String(Array.isArray(font) ? font[0] : font);
  const widths = (labels ?? []).map((label) => plot.ctx.measureText(label).width / devicePixelRatio);
  return Math.ceil(Math.max(AXIS_WIDTH, ...widths.map((width) => width + gap + 6)));
}

/** Paint under the lines: the stretches that were filled in, and those without data. */
function drawMarks(plot: uPlot, { marks, lostAt, end }: Props, color: (name: string) => string): void {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  const stretch = (from: number, to: number): [number, number, number, number] => {
    const left = plot.valToPos(from, "x", true);
    return [left, bbox.top, plot.valToPos(to, "x", true) - left, bbox.height];
  };
  ctx.fillStyle = color("--mark-wash");
  // Half a second on both sides, so that a single value is visible too.
  for (const [from, to] of marks) ctx.fillRect(...stretch(from - 0.5, to + 0.5));
  if (lostAt !== undefined) {
    const [left, top, width, height] = stretch(lostAt, end);
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.strokeStyle = color("--hair");
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    const step = 8 * devicePixelRatio;
    for (let x = left - height; x < left + width; x += step) {
      ctx.moveTo(x, top + height);
      ctx.lineTo(x + height, top);
    }
    ctx.stroke();
  }
  ctx.restore();
}

function clock(seconds: number): string {
  return new Date(seconds * 1_000).toLocaleTimeString([], {
    hourCycle: "h23",
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
  });
}
