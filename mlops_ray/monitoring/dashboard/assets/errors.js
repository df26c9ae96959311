/* Errors of the service: searched by text, and by what they are; addresses say what is looked for. */

import { chip, el, empty, panel } from "./dom.js";
import { chart } from "./charts.js";
import { compact, plural, shortly, when } from "./format.js";

const FIRST = 40, MOST = 200;
const FIELDS = { level: "Level", stage: "Stage", type: "Type", version: "Version", model: "Model" };

export const urls = ({ query, period }) => {
  const asked = new URLSearchParams(period);
  for (const name of ["q", ...Object.keys(FIELDS)]) if (query.get(name)) asked.set(name, query.get(name));
  return { data: `errors?${asked}` };
};

export const build = ({ data }, route) => [el("h1", { tabindex: -1 }, "Errors"), ...search(data, route)];

/** The search, and what it found; of one model where the page is that model's. */
export function search(data, { query, change, model, span }) {
  const fields = Object.keys(FIELDS).filter((field) => !(model && field === "model"));
  let waiting;
  const box = el("input", { type: "search", name: "q", value: query.get("q") ?? "", placeholder: "Text, request id, type …", "aria-label": "Search errors",
    oninput: (event) => { clearTimeout(waiting); const { value } = event.currentTarget; waiting = setTimeout(() => change({ q: value }), 250); } });
  const chosen = fields.filter((field) => query.get(field));
  return [
    el("form", { class: "search", role: "search", onsubmit: (event) => event.preventDefault() }, box,
      fields.filter((field) => Object.keys(data.by[field]).length > 1 || query.get(field)).map((field) => el("select", { "aria-label": FIELDS[field], name: field,
        onchange: (event) => change({ [field]: event.currentTarget.value }) },
        el("option", { value: "" }, `${FIELDS[field]}: all`),
        [...new Set([...Object.keys(data.by[field]), query.get(field)].filter(Boolean))].map((value) =>
          el("option", { value, selected: query.get(field) === value }, `${value} (${compact(data.by[field][value] ?? 0)})`)))),
      chosen.length || query.get("q") ? el("button", { type: "button", onclick: () => change(Object.fromEntries(["q", ...fields].map((name) => [name, ""]))) }, "Clear") : null),
    panel(plural(data.count, "event"), "Callers' errors (4xx) are counted by kind, a line a minute; values of rows are never logged.",
      data.count ? chart({ label: "Errors over time", at: data.at, ends: [data.at[0], data.at.at(-1) + data.step], height: 120, from: 0, onspan: span,
        series: [{ label: "errors", values: data.errors, color: "bad", kind: "bars" }, { label: "warnings", values: data.warnings, color: "warn", kind: "bars" }] }) : null,
      data.is_cut && el("p", { class: "note" }, "Only the newest files of the log were searched.")),
    data.lines.length
      ? el("ul", { class: "errors" }, data.lines.slice(0, query.get("all") ? MOST : FIRST).map(line))
      : empty("Nothing was logged that fits.", "Choose a longer period, or clear the search."),
    data.lines.length > FIRST && !query.get("all") ? el("button", { type: "button", onclick: () => change({ all: 1 }) }, `Show ${data.lines.length - FIRST} more`) : null,
    data.lines.length === MOST && query.get("all") ? el("p", { class: "note" }, "The newest 200 lines are shown; counts are of all.") : null,
  ];
}

function line(found) {
  const fact = (name, value) => value && [el("dt", {}, name), el("dd", {}, String(value))];
  return el("li", { "data-key": `${found.at} ${found.request} ${found.type}` }, el("details", {},
    el("summary", {},
      el("time", { datetime: new Date(found.at * 1000).toISOString() }, shortly(found.at)),
      chip(found.level === "warning" ? "warn" : "bad", found.type), el("span", { class: "stage" }, found.stage),
      el("span", { class: "said" }, found.said), found.count > 1 ? el("span", { class: "count" }, `× ${compact(found.count)}`) : null),
    el("dl", { class: "facts" }, fact("Time", when(found.at)), fact("Model", found.model), fact("Version", found.version),
      fact("Process", found.process), fact("Stage", found.stage), fact("Status", found.status), fact("Request id", found.request), fact("Run", found.run), fact("Raised at", found.where), fact("Said", found.said))));
}
