/* The first page: all models, a row for each. */

import { chip, el, empty, code, tile } from "./dom.js";
import { spark } from "./charts.js";
import { compact, day, milliseconds, percent, plural, shareOf, short, since, when, words } from "./format.js";

export const urls = ({ period }) => ({ data: `models?${period}` });

export function build({ data }, { link, chosen }) {
  const { models } = data, sum = (of) => models.reduce((total, model) => total + of(model), 0);
  const total = (key) => sum((model) => model.traffic.total[key]);
  const alarms = sum((model) => (model.alarm ? 1 : 0));
  if (!models.length)
    return [el("h1", {}, "Models"), empty("No model is live.", "Bring one up with ", code("mlops-ray run PROJECT.yaml"),
      ", or release a version with ", code("mlops-ray push VERSION"), ".")];
  const order = (model) => [model.alarm ? 0 : 1, model.name];
  const sorted = [...models].sort((a, b) => (order(a) < order(b) ? -1 : 1));
  const hasCosts = models.some((model) => model.cost);
  return [
    el("h1", { tabindex: -1 }, "Models"),
    !data.monitor && el("p", { class: "banner", role: "alert" },
      "The monitor does not answer; counts stand still until it is back."),
    el("dl", { class: "tiles" },
      tile("Live", plural(models.length, "model"), plural(sum((m) => (m.challenger ? 1 : 0)), "release") + " going on"),
      tile("Open alarms", String(alarms), plural(sum((m) => m.alarms), "alarm") + " opened " + chosen.words, alarms ? "bad" : "ok"),
      tile("Requests", compact(total("requests")), chosen.words),
      tile("Failed (5xx)", shareOf(total("failed"), total("requests")), compact(total("failed")) + " requests", total("failed") ? "" : "ok"),
      el("div", { class: "tile" }, el("dt", {}, "Errors logged"), el("dd", {},
        el("b", {}, el("a", { href: link("errors", { level: "error" }) }, compact(data.errors))), el("span", {}, chosen.words)))),
    el("ul", { class: "models" + (hasCosts ? " costs" : "") },
      el("li", { class: "row names", "aria-hidden": "true" },
        ["Model", `Requests, ${chosen.words}`, "p99", "Failed", "Drift", "Quality", hasCosts && "Per 1,000"].filter(Boolean).map((name) => el("span", {}, name))),
      sorted.map((model) => row(model, link, hasCosts))),
  ];
}

function row(model, link, hasCosts) {
  const { traffic, alarm, drift, quality } = model, { total } = traffic;
  const cell = (name, kind, ...content) => el("div", { class: "cell " + kind }, el("span", { class: "label" }, name), ...content);
  return el("li", { class: "row" + (alarm ? " bad" : ""), "data-key": model.name },
    el("div", { class: "cell title" },
      el("a", { class: "stretched", href: link(`models/${encodeURIComponent(model.name)}`) }, model.name),
      el("span", { class: "chips" }, state(model)),
      alarm && el("span", { class: "evidence" }, `${alarm.said} since ${when(alarm.opened)}: ${alarm.evidence}`)),
    cell("Requests", "traffic", spark(traffic.requests, `${compact(total.requests)} requests`),
      el("span", { class: "figure" }, el("b", {}, compact(total.requests)),
        model.now !== null && el("small", {}, ` ${short(model.now)}/s`))),
    cell("p99", "", el("b", {}, milliseconds(total.p99_us))),
    cell("Failed", total.failed ? "warned" : "", el("b", {}, shareOf(total.failed, total.requests))),
    cell("Drift", drift?.found.length ? "warned" : "", drift ? el("span", {}, el("b", {}, String(drift.found.length)), el("small", {}, ` of ${plural(drift.columns, "column")}`)) : el("small", {}, "no window yet")),
    cell("Quality", "", quality ? qualities(quality) : el("small", {}, "no window yet")),
    hasCosts && cell("Per 1,000", "", model.cost ? el("span", {}, el("b", {}, `${short(model.cost.amount)} ${model.cost.currency}`), el("small", {}, ` since ${day(model.cost.since)}`)) : "–"));
}

/** Which version answers, what is being released, and whether all is well. */
export function state(model) {
  const { challenger } = model;
  return [
    chip("", `version ${model.version}`),
    challenger && chip("warn", `version ${challenger.version}: ${challenger.state}${challenger.weight ? ` ${percent(challenger.weight / 100)}` : ""}`),
    model.alarm ? chip("bad", `alarm for ${since(model.alarm.opened)}`) : model.drift ? chip("ok", "quiet") : chip("", "not watched yet"),
  ];
}

const qualities = ({ metric, estimated, realised, reference }) => {
  const value = realised ?? estimated;
  return el("span", { title: `in the test ${short(reference)}` }, el("b", {}, short(value)),
    el("small", {}, ` ${words(metric)}${realised === null ? ", estimated" : ""}`));
};
