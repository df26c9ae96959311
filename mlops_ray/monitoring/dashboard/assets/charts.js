/* Pictures of what happened over time, by uPlot (github.com/leeoniya/uPlot, MIT); small ones drawn by hand. */

import { draw, el, picture, svg } from "./dom.js";
import { short, shortly } from "./format.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** Bars and lines over time. Each series has `label`, `values`, a `color` (a name of the style sheet), and a
    `kind`: line, points, bars (stacked in their order), band (values are [low, high], filled, in no legend).
    `show(value)` writes one; `level` is a dashed line; `onspan(since, until)` hears what is dragged over. */
export function chart({ label, at, ends, series, show = short, level, from, height = 200, marks = [], onspan }) {
  const text = `${label}. ` + series.filter((each) => each.kind !== "band").map((each) => {
    const known = each.values.filter((value) => value !== null);
    return known.length ? `${each.label}: ${show(Math.min(...known))} to ${show(Math.max(...known))}` : `${each.label}: none`;
  }).join("; ");
  const legend = el("ul", { class: "legend" }, series.filter((each) => each.kind !== "band" && each.legend !== false)
    .map((each) => el("li", { class: `dot-${each.color} ${each.kind}` }, each.label)),
    level && el("li", { class: "dot-level dashed" }, level.label));
  const host = picture((node) => plot(node, { at, ends, series, show, level, from, height, marks, onspan }),
    { class: "chart", role: "img", "aria-label": text });
  return el("div", { class: "charted" }, host, legend, numbers(label, at, series, show));
}

/** The same as a table, for who cannot see it, or wants to copy it. */
function numbers(label, at, series, show) {
  const shown = series.filter((each) => each.kind !== "band");
  const cell = (text) => el("td", { class: "number" }, text);
  const rows = picture((host) => {
    // Nobody waits for a table that is not looked at.
    if (!host.closest("details").open) return;
    host.replaceChildren(el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"),
        shown.map((each) => el("th", { scope: "col", class: "number" }, each.label)))),
      el("tbody", {}, at.map((time, i) => el("tr", {}, el("td", {}, shortly(time)), shown.map((each) => cell(show(each.values[i]))))))));
  }, { class: "scrolled", tabindex: 0, role: "region", "aria-label": label + ", as a table" });
  return el("details", { class: "numbers", ontoggle: (event) => draw(event.currentTarget) },
    el("summary", {}, "Numbers"), rows);
}

const plotted = new Set();

function plot(host, asked) {
  // What is not shown any more listens no longer.
  for (const other of plotted) if (!other.isConnected) { other.plot.destroy(); plotted.delete(other); }
  const width = Math.floor(host.clientWidth);
  if (!width) return;
  const shape = JSON.stringify([dark.matches, asked.height, asked.level, asked.series.map((each) => [each.label, each.color, each.kind])]);
  host.asked = asked;
  if (host.plot && host.shape === shape) {
    if (host.plot.width !== width) host.plot.setSize({ width, height: asked.height });
    if (host.data !== asked.series) host.plot.setData(columns(asked));
  } else {
    host.plot?.destroy();
    host.replaceChildren();
    host.plot = new uPlot(options(host, asked, width), columns(asked), host);
    host.shape = shape;
    plotted.add(host);
  }
  host.data = asked.series;
}

/** uPlot's columns: stacked bars are sums, the tallest first, so that the shorter stand before it. */
function columns({ at, series }) {
  const stacked = series.filter((each) => each.kind === "bars");
  const sums = stacked.map((_, place) => at.map((_, i) =>
    stacked.slice(0, place + 1).reduce((total, each) => total + (each.values[i] ?? 0), 0))).reverse();
  const rest = series.filter((each) => each.kind !== "bars")
    .flatMap((each) => (each.kind === "band" ? [each.values.map((v) => v?.[1] ?? null), each.values.map((v) => v?.[0] ?? null)] : [each.values]));
  return [at, ...sums, ...rest];
}

function options(host, { series, show, level, height }, width) {
  const grid = { stroke: color("line"), width: 1 }, text = color("muted");
  const axis = { stroke: text, font: "12px system-ui, sans-serif", grid, ticks: { show: false } };
  const bars = series.filter((each) => each.kind === "bars").reverse().map((each) => (
    { fill: color(each.color), width: 0, points: { show: false },
      paths: uPlot.paths.bars({ size: [0.86, 40], align: 1, radius: 0.12 }) }));
  const bands = [], drawn = [{}, ...bars];
  for (const each of series.filter((each) => each.kind !== "bars")) {
    const stroke = color(each.color), line = { stroke, width: 2, spanGaps: true };
    if (each.kind === "band") {
      bands.push({ series: [drawn.length, drawn.length + 1], fill: color(each.color) });
      const edge = { width: 0, spanGaps: true, points: { show: false } };
      drawn.push(edge, edge);
    } else if (each.kind === "points") drawn.push({ ...line, width: 1, points: { show: true, size: 6, fill: stroke, stroke } });
    else drawn.push({ ...line, points: { show: each.values.filter((v) => v !== null).length < 40, size: 5, fill: stroke } });
  }
  const range = (plot, low, high) => {
    const values = [low, high, level?.value].filter((value) => value !== null && value !== undefined && Number.isFinite(value));
    if (!values.length) return [0, 1];
    let [least, most] = [Math.min(...values), Math.max(...values)];
    if (host.asked.from !== undefined) least = Math.min(least, host.asked.from);
    const room = (most - least || Math.abs(most) || 1) * 0.08;
    return [host.asked.from === undefined ? least - room : least, most + room];
  };
  return {
    width, height, series: drawn, bands, padding: [12, 24, 0, 0],
    legend: { show: false },
    cursor: { drag: { x: true, y: false, setScale: false }, points: { size: 7 }, y: false },
    scales: { x: { range: () => host.asked.ends ?? [host.asked.at[0], host.asked.at.at(-1)] }, y: { range } },
    axes: [
      { ...axis, grid: { show: false }, size: 28, space: 64, values: (plot, splits, _, space, step) => splits.map((at) => tick(at, step)) },
      { ...axis, size: 52, gap: 6, space: 36, values: (plot, splits) => splits.map((value) => show(value, true)) },
    ],
    hooks: {
      draw: [(plot) => levels(plot, host.asked)],
      setCursor: [(plot) => tooltip(host, plot)],
      setSelect: [(plot) => {
        const { left, width: wide } = plot.select;
        if (wide > 8 && host.asked.onspan) host.asked.onspan(plot.posToVal(left, "x"), plot.posToVal(left + wide, "x"));
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
      }],
    },
  };
}

const HOURS = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const DAYS = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const MONTHS = new Intl.DateTimeFormat("en-GB", { month: "short", year: "numeric" });
function tick(at, step) {
  const date = new Date(at * 1000);
  if (step >= 27 * 86400) return MONTHS.format(date);
  return step < 86400 && (date.getHours() || date.getMinutes()) ? HOURS.format(date) : DAYS.format(date);
}

/** The dashed level, and what happened, as lines from top to bottom. */
function levels(plot, { level, marks }) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
  ctx.lineWidth = devicePixelRatio;
  const line = (x1, y1, x2, y2) => { ctx.beginPath(); ctx.moveTo(x1, y1); ctx.lineTo(x2, y2); ctx.stroke(); };
  if (level) {
    ctx.strokeStyle = color("level");
    const y = plot.valToPos(level.value, "y", true);
    line(bbox.left, y, bbox.left + bbox.width, y);
  }
  ctx.strokeStyle = color("muted");
  for (const { at } of marks) {
    const x = plot.valToPos(at, "x", true);
    if (x >= bbox.left && x <= bbox.left + bbox.width) line(x, bbox.top, x, bbox.top + bbox.height);
  }
  ctx.restore();
}

function tooltip(host, plot) {
  const { at, series, show, marks } = host.asked;
  let tip = host.querySelector(".tip");
  const place = plot.cursor.idx;
  if (place === null || place === undefined || plot.cursor.left < 0) return tip?.remove();
  if (!tip) host.append((tip = el("div", { class: "tip", "aria-hidden": "true" })));
  const near = marks.filter((mark) => Math.abs(plot.valToPos(mark.at, "x") - plot.cursor.left) < 6);
  tip.replaceChildren(el("b", {}, shortly(at[place])),
    ...series.filter((each) => each.kind !== "band").map((each) => el("span", { class: "dot-" + each.color }, `${each.label} `, el("b", {}, show(each.values[place])))),
    ...near.map((mark) => el("span", { class: "mark" }, mark.label)));
  const left = plot.valToPos(at[place], "x") + plot.bbox.left / devicePixelRatio;
  tip.style.transform = `translateX(${left > host.clientWidth / 2 ? "calc(-100% - 12px)" : "12px"})`;
  tip.style.left = left + "px";
}

/** A line as high as a word: what came when, of itself alone. */
export function spark(values, label) {
  const most = Math.max(1e-9, ...values), step = 100 / Math.max(1, values.length - 1);
  const points = values.map((value, at) => `${(at * step).toFixed(2)},${(27 - (value / most) * 24).toFixed(2)}`);
  return svg("svg", { class: "spark", viewBox: "0 0 100 28", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("polygon", { points: `0,28 ${points.join(" ")} 100,28`, class: "under" }),
    svg("polyline", { points: points.join(" "), class: "over", "vector-effect": "non-scaling-stroke" }));
}

/** A bar of a share of one, with an optional mark. */
export function bar(share, kind, mark) {
  const width = Math.max(share > 0 ? 1 : 0, Math.min(1, share) * 100);
  return svg("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: 100, height: 8, class: "track" }), svg("rect", { width, height: 8, class: kind }),
    mark && svg("rect", { x: mark * 100, width: 0.6, height: 8, class: "at" }));
}

/** How the values of a column are spread: shares of its cells, of the reference and of now. */
export function distribution(found) {
  return picture((host) => {
    const width = Math.max(240, Math.floor(host.clientWidth)), height = 210, left = 44, bottom = 26;
    const labels = found.labels, ours = found.reference ?? [], theirs = found.current;
    const most = Math.max(0.001, ...ours, ...theirs), step = (width - left) / labels.length;
    const y = (share) => (share / most) * (height - bottom - 10);
    const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
    for (const part of [0, 0.5, 1]) {
      const at = height - bottom - y(most * part);
      drawn.append(svg("line", { x1: left, x2: width, y1: at, y2: at, class: "grid" }),
        svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, short(most * part * 100) + " %"));
    }
    const every = Math.ceil(labels.length / Math.max(2, Math.floor((width - left) / 66)));
    labels.forEach((label, i) => {
      const x = left + i * step, thick = Math.max(1, step * 0.36);
      drawn.append(svg("g", {},
        svg("title", {}, `${label}: reference ${short((ours[i] ?? 0) * 100)} %, now ${short(theirs[i] * 100)} %`),
        svg("rect", { x, y: 0, width: step, height: height - bottom, class: "hit" }),
        ours.length ? svg("rect", { x: x + step * 0.12, y: height - bottom - y(ours[i]), width: thick, height: y(ours[i]), rx: 1, class: "second" }) : null,
        svg("rect", { x: x + step * 0.12 + (ours.length ? thick : 0), y: height - bottom - y(theirs[i]), width: thick, height: y(theirs[i]), rx: 1, class: "accent" })));
      // Of a bin its lower end; there is no room for both.
      const text = found.kind === "numeric" ? label.split(" – ")[0] : label;
      const shown = text.length > 10 ? text.slice(0, 9) + "…" : text;
      if (i % every === 0 && x + 7 * shown.length < width)
        drawn.append(svg("text", { x: x + step * 0.12, y: height - bottom + 16 }, shown));
    });
    host.replaceChildren(drawn);
  }, { class: "distribution", role: "img", "aria-label": `Shares of the values of ${found.column}, reference and window` });
}

/** Points [x, y, what it is of, whether it is marked], with the names of both axes; a table beside it has the numbers. */
export function scatter(label, [across, up], points) {
  const [width, height, left, right, top, bottom] = [360, 200, 50, 16, 24, 40];
  const placed = (values, from, to) => {
    const [least, most] = [Math.min(...values), Math.max(...values)], span = most - least || Math.abs(most) || 1;
    // What is alike lies in the middle.
    return { at: (value) => from + (most > least ? (value - least) / span : 0.5) * (to - from), marks: most > least ? [least, (least + most) / 2, most] : [most] };
  };
  const x = placed(points.map(([value]) => value), left + 8, width - right - 8), y = placed(points.map(([, value]) => value), height - bottom - 8, top + 8);
  return svg("svg", { class: "scatter", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    y.marks.map((mark) => [svg("line", { x1: left, x2: width - right, y1: y.at(mark), y2: y.at(mark), class: "grid" }), svg("text", { x: left - 6, y: y.at(mark) + 4, "text-anchor": "end" }, short(mark))]),
    x.marks.map((mark) => svg("text", { x: x.at(mark), y: height - bottom + 16, "text-anchor": "middle" }, short(mark))),
    svg("text", { x: left, y: 12 }, up), svg("text", { x: width - right, y: height - 6, "text-anchor": "end" }, across),
    points.map(([right_, up_, of, is]) => svg("circle", { cx: x.at(right_), cy: y.at(up_), r: is ? 5.5 : 4, class: is ? "accent" : "second" }, svg("title", {}, `${of}: ${across} ${short(right_)}, ${up} ${short(up_)}`))));
}
