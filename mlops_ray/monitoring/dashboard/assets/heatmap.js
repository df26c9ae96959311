/* Drift by column and time as a heat map: a canvas that is pointed at, or walked over with the arrow keys. */

import { el, picture } from "./dom.js";
import { between, plural, psi } from "./format.js";

/* Where a colour begins: below the first nothing matters (monitoring/drift.py); usual rules of thumb above. */
export const STEPS = [0, 0.02, 0.05, 0.1, 0.25, 0.5];
const ROW = 26, AXIS = 22;
const dark = matchMedia("(prefers-color-scheme: dark)");

const level = (value) => STEPS.findLastIndex((step) => Math.max(0, value) >= step);

/** `at` are [since, until] of each step; `columns` have `name`, `psi`, `found`; `open(column, step)` is called
    for what is chosen, `chosen` is that. */
export function heatmap({ at, columns, windows, open, chosen }) {
  const names = el("div", { class: "names", "aria-hidden": "true" }, columns.map((column) =>
    el("div", { class: "name" + (chosen?.column === column.name ? " chosen" : ""), title: column.name, onclick: () => open(column.name, at.length - 1) },
      column.is_hidden && el("span", { class: "lock", title: "for machines only" }, "▪ "), column.name)));
  const peaks = el("div", { class: "peaks", "aria-hidden": "true" }, columns.map((column) => {
    const peak = Math.max(...column.psi.filter((value) => value !== null), 0);
    return el("div", { class: "peak" }, psi(peak));
  }));
  const host = picture((node) => paint(node, { at, columns, windows, open, chosen }), {
    class: "cells", tabindex: 0, role: "application", "aria-roledescription": "heat map",
    "aria-label": `Drift of ${plural(columns.length, "column")} in ${plural(at.length, "step")}. Arrow keys move, Enter shows the distributions.`,
    onkeydown: (event) => walk(event), onclick: (event) => point(event, true), onmousemove: (event) => point(event, false),
    onmouseleave: (event) => { event.currentTarget.over = null; paint(event.currentTarget, event.currentTarget.asked); } });
  return el("div", { class: "heatmap" }, names, host, peaks);
}

/** What the colours mean. */
export const scale = () =>
  el("ul", { class: "scale" }, STEPS.map((step, at) => el("li", { class: `heat-${at}` },
    at === 0 ? `below ${STEPS[1]}` : at === STEPS.length - 1 ? `${step} and more` : `${step} – ${STEPS[at + 1]}`)),
    el("li", { class: "found" }, "found by a test"));

function paint(host, asked) {
  host.asked = asked;
  const { at, columns, chosen } = asked;
  const width = Math.floor(host.clientWidth), height = columns.length * ROW + AXIS;
  if (!width) return;
  let canvas = host.querySelector("canvas");
  if (!canvas) host.append((canvas = el("canvas", { "aria-hidden": "true" })), el("p", { class: "told", role: "status" }));
  const ratio = devicePixelRatio, style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue("--" + name).trim();
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = width + "px";
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const [first, last] = [at[0]?.[0] ?? 0, at.at(-1)?.[1] ?? 1];
  const x = (time) => ((time - first) / (last - first || 1)) * width;
  host.steps = at.map(([since, until]) => [x(since), Math.max(x(since) + 1, x(until))]);
  const heats = STEPS.map((_, step) => colour("heat-" + step)), gap = width / at.length > 5 ? 1 : 0;
  columns.forEach((column, row) => {
    column.psi.forEach((value, step) => {
      const [from, to] = host.steps[step];
      context.fillStyle = value === null ? colour("sunk") : heats[level(value)];
      context.fillRect(from, row * ROW + 1, Math.max(1, to - from - gap), ROW - 2);
    });
    for (const step of column.found) {
      context.fillStyle = colour(level(column.psi[step]) > 4 ? "card" : "text");
      const [from, to] = host.steps[step];
      context.beginPath();
      context.arc((from + to - gap) / 2, row * ROW + ROW / 2, Math.min(2.5, (to - from) / 2.4), 0, 7);
      context.fill();
    }
  });
  const ring = (place, name, thick) => {
    if (!place || !host.steps[place.step] || place.row < 0) return;
    const [from, to] = host.steps[place.step];
    context.strokeStyle = colour(name);
    context.lineWidth = thick;
    context.strokeRect(from - 1, place.row * ROW, Math.max(4, to - from + 1 - gap), ROW);
  };
  if (chosen) ring({ row: columns.findIndex((column) => column.name === chosen.column), step: chosen.step }, "text", 2.5);
  ring(host.over, "accent", 2.5);
  if (document.activeElement === host) ring(host.focus_, "accent", 2.5);
  context.fillStyle = colour("muted");
  context.font = "12px system-ui, sans-serif";
  const marks = Math.max(2, Math.floor(width / 110)), format = labels(last - first);
  for (let mark = 0; mark < marks; mark++) {
    const time = first + ((last - first) * mark) / (marks - 1);
    context.textAlign = mark === 0 ? "left" : mark === marks - 1 ? "right" : "center";
    context.fillText(format.format(new Date(time * 1000)), x(time), height - 6);
  }
}

const labels = (length) => new Intl.DateTimeFormat("en-GB", length > 3 * 86400 ? { day: "numeric", month: "short" }
  : { day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

function tell(host, { row, step }) {
  const { at, columns, windows } = host.asked, column = columns[row];
  const found = column.found.includes(step) ? ", found by a test" : "";
  host.querySelector(".told").textContent =
    `${column.name}, ${between(...at[step])} (${plural(windows[step], "window")}): PSI ${psi(column.psi[step])}${found}`;
}

function point(event, isChosen) {
  const host = event.currentTarget, box = host.querySelector("canvas").getBoundingClientRect();
  const row = Math.floor((event.clientY - box.top) / ROW), left = event.clientX - box.left;
  const step = host.steps.findIndex(([from, to]) => left >= from && left < to);
  if (row < 0 || row >= host.asked.columns.length || step < 0) return;
  host.over = { row, step };
  paint(host, host.asked);
  tell(host, host.over);
  if (isChosen) host.asked.open(host.asked.columns[row].name, step);
}

function walk(event) {
  const host = event.currentTarget, { at, columns, open } = host.asked;
  const now = host.focus_ ?? { row: 0, step: at.length - 1 };
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -at.length], End: [0, at.length] };
  const move = moves[event.key];
  if (move) {
    const within = (value, most) => Math.min(Math.max(value, 0), most - 1);
    host.focus_ = host.focus_ ? { row: within(now.row + move[0], columns.length), step: within(now.step + move[1], at.length) } : now;
    host.over = null;
    paint(host, host.asked);
    tell(host, host.focus_);
  } else if (event.key === "Enter" || event.key === " ") {
    host.focus_ = now;
    open(columns[now.row].name, now.step);
  } else return;
  event.preventDefault();
}
