/* The pages of one model: what goes on, and beside it drift, performance, alarms, errors, releases, features,
   runs and costs, each at an address of its own. */

import { bar, chart, distribution, scatter } from "./charts.js";
import { chip, code, el, empty, panel, some, table, tile } from "./dom.js";
import { search, urls as errorUrls } from "./errors.js";
import { ago, since, between, chance, compact, lasting, milliseconds, percent, plural, psi, seconds, shareOf, short, shortly, when, whole, words } from "./format.js";
import { heatmap, scale } from "./heatmap.js";
import { state } from "./models.js";

const CELL_PX = 7, FLOOR = 0.02;
const TABS = { "": ["Overview", overview], drift: ["Drift", drift], performance: ["Performance", performance], alarms: ["Alarms", alarms],
  errors: ["Errors", (data, route) => search(data, route)], releases: ["Releases", releases], features: ["Features", features],
  runs: ["Runs", runs], costs: ["Costs", costs] };

const tabOf = ({ parts }) => (TABS[parts[2]] ? parts[2] : "");

export function urls(route) {
  const { parts, period, query } = route, name = encodeURIComponent(parts[1]), tab = tabOf(route);
  const found = { head: `models/${name}?${period}` };
  if (tab === "errors") {
    const asked = new URLSearchParams(query);
    asked.set("model", parts[1]);
    return { ...found, data: errorUrls({ ...route, query: asked }).data };
  }
  if (tab) found.data = `models/${name}/${tab}?${period}`;
  if (tab === "drift") {
    const wide = document.getElementById("main").clientWidth, cells = Math.floor((wide > 1180 ? wide * 0.55 : wide - 190) / CELL_PX);
    found.data += `&cells=${Math.min(Math.max(cells, 20), 120)}`;
    if (query.get("q")) found.data += `&q=${encodeURIComponent(query.get("q"))}`;
    if (query.get("column")) {
      const at = query.get("at") ? query.get("at").split("-") : null;
      found.column = `models/${name}/column?column=${encodeURIComponent(query.get("column"))}` + (at ? `&from=${at[0]}&to=${at[1]}` : "");
    }
  }
  return found;
}

export function build(documents, route) {
  const { head, data } = documents, { link, parts } = route, tab = tabOf(route);
  const base = `models/${encodeURIComponent(parts[1])}`;
  const shown = Object.entries(TABS).filter(([name]) => name !== "costs" || head.has.costs);
  return [
    el("div", { class: "title" },
      el("p", { class: "crumbs" }, el("a", { href: link("") }, "Models")),
      el("h1", { tabindex: -1 }, head.name), el("span", { class: "chips" }, state(head))),
    el("p", { class: "about" }, `${words(head.family)}, ${words(head.task)}, live since ${when(seconds(head.since))}` + (head.previous ? `; before it version ${head.previous}` : "")),
    el("nav", { class: "tabs", "aria-label": `Parts of ${head.name}` }, shown.map(([name, [text]]) =>
      el("a", { href: link(name ? `${base}/${name}` : base), "aria-current": name === tab ? "page" : null }, text,
        name === "alarms" && head.alarm ? el("span", { class: "badge" }, "1") : null))),
    el("div", { class: "content", "data-key": tab }, TABS[tab][1](data, route, head, documents)),
  ];
}

// ---------------------------------------------------------------- overview

function overview(_, route, head) {
  const { traffic, drift: moved, quality } = head, { total } = traffic, { chosen, link, parts, span } = route;
  const base = `models/${encodeURIComponent(parts[1])}`, ends = [traffic.at[0], traffic.at.at(-1) + traffic.step];
  const marks = head.turns.map((turn) => ({ at: seconds(turn.at), label: `version ${turn.version}: ${words(turn.state)}` }));
  const answered = traffic.requests.map((count, at) => count - traffic.refused[at] - traffic.failed[at]);
  const count = (value) => compact(value);
  return [
    head.alarm && el("section", { class: "alarm", "aria-label": "Alarm" }, el("h2", {}, `Alarm: ${head.alarm.said}, since ${when(head.alarm.opened)}`),
      el("p", {}, head.alarm.evidence), el("a", { href: link(`${base}/alarms`) }, head.alarm.count > 1 ? `All ${head.alarm.count} findings` : "The alarm")),
    el("dl", { class: "tiles" },
      tile("Requests", compact(total.requests), head.now === null ? chosen.words : `${short(head.now)} a second now`),
      tile("Answered within, p99", milliseconds(total.p99_us), `half within ${milliseconds(total.p50_us)}`),
      tile("Failed (5xx)", shareOf(total.failed, total.requests), plural(total.failed, "request"), total.failed ? "" : "ok"),
      tile("Refused (4xx)", shareOf(total.refused, total.requests), plural(total.refused, "request")),
      tile("Drift found", moved ? `${moved.found.length} of ${moved.columns}` : "–", moved ? `columns; by PSI ${moved.moved} beyond ${FLOOR}` : "no window has closed yet", moved?.found.length ? "warn" : ""),
      quality && tile(words(quality.metric), short(quality.realised ?? quality.estimated), `${quality.realised === null ? "estimated; " : "by labels; "}in the test ${short(quality.reference)}`),
      head.cost && tile("Cost per 1,000", `${short(head.cost.amount)} ${head.cost.currency}`, sinceWhen(head.cost))),
    el("div", { class: "pair" },
      panel("Traffic", `Requests every ${lasting(traffic.step)}`,
        total.requests ? chart({ label: "Requests", at: traffic.at, ends, marks, from: 0, show: count, onspan: span, series: [
          { label: "answered", values: answered, color: "accent", kind: "bars" }, { label: "refused", values: traffic.refused, color: "warn", kind: "bars" },
          { label: "failed", values: traffic.failed, color: "bad", kind: "bars" }] })
          : empty(`No request ${chosen.words}.`, "Send one: ", code(`POST /v2/models/${head.name}/infer`), ".")),
      panel("Latency", "Time to answer, from the request's head to the reply",
        total.requests ? chart({ label: "Latency in milliseconds", at: traffic.at, ends, marks, from: 0, show: (value) => (value === null ? "–" : `${short(value)} ms`), onspan: span, series: [
          { label: "p99", values: traffic.p99_us.map(ms), color: "accent", kind: "line" }, { label: "half", values: traffic.p50_us.map(ms), color: "second", kind: "line" }] })
          : empty(`No request ${chosen.words}.`, "Its time would stand here."))),
    el("div", { class: "triple" }, tested(head), refused(head), invalid(head)),
  ];
}

const sinceWhen = (cost) => (cost.since ? `since ${when(cost.since)}, idle included` : "idle included");
const ms = (us) => (us === null ? null : us / 1000);

function tested(head) {
  const measure = head.metrics.relative_mae !== undefined ? "relative_mae" : Object.keys(head.metrics)[0];
  if (measure === undefined) return null;
  const rows = [[`version ${head.version}`, head.metrics[measure], "accent"], ...Object.entries(head.baselines)
    .filter(([, of]) => of[measure] !== undefined).map(([name, of]) => [words(name), of[measure], "second"])];
  const most = Math.max(...rows.map(([, value]) => value));
  return panel("On the test part", `${words(measure)}, beside naive forecasts`,
    el("dl", { class: "bars" }, rows.map(([name, value, kind]) => [el("dt", {}, name), el("dd", {}, bar(value / most, kind)), el("dd", { class: "number" }, short(value))])),
    el("p", { class: "note" }, Object.entries(head.metrics).map(([name, value]) => `${words(name)} ${short(value)}`).join(" · ")));
}

function refused({ rejected, version }) {
  const found = Object.entries(rejected).sort((a, b) => b[1] - a[1]);
  return panel("Refused requests", `By reason, since version ${version} is live`,
    found.length ? table("Refused requests by reason", ["Reason", "Requests"], found.map(([reason, count]) => [words(reason), whole(count)]), [1])
      : el("p", { class: "note" }, "None so far."));
}

function invalid({ invalid: found, version }) {
  return panel("Invalid values", `Values that failed a check, since version ${version} is live`,
    found.length ? table("Invalid values by column", ["Column", "Check", "Values"], found.map(({ column, rule, count }) => [column || "(several)", words(rule), whole(count)]), [2])
      : el("p", { class: "note" }, "None so far."));
}

// ---------------------------------------------------------------- drift

function drift(data, route, head, { column }) {
  const { query, go, change } = route, { at, columns, open: now } = data;
  if (!at.length && !now) return empty("No window has closed yet.", ...closes(head));
  const chosen = query.get("column") ? { column: query.get("column"), step: at.findIndex(([since, until]) => query.get("at") === `${Math.ceil(since)}-${Math.ceil(until)}`) } : null;
  const open = (name, step) => go({ column: name, at: step < 0 ? "" : `${Math.ceil(at[step][0])}-${Math.ceil(at[step][1])}` });
  let waiting;
  const map = panel("Drift by column",
    `PSI of each window less its bias; of several windows in a step the largest. ${plural(data.windows.reduce((a, b) => a + b, 0), "window")}, ${compact(data.rows.reduce((a, b) => a + b, 0))} rows.`,
    el("div", { class: "tools" },
      el("input", { type: "search", value: query.get("q") ?? "", placeholder: "Column …", "aria-label": "Search columns",
        oninput: (event) => { clearTimeout(waiting); const { value } = event.currentTarget; waiting = setTimeout(() => change({ q: value }), 250); } }), scale()),
    at.length ? (columns.length ? heatmap({ at, columns, windows: data.windows, open, chosen }) : empty("No column is called so.", "Clear the search."))
      : empty("No window has closed in this period.", "Choose a longer one."),
    data.total > columns.length ? el("p", { class: "note" }, `The ${columns.length} columns of ${data.total} that moved most; the search finds the others.`) : null,
    data.untested.length ? el("p", { class: "note" }, `Not tested: ${data.untested.join(", ")}.`) : null,
    data.has_seasons ? el("p", { class: "note" }, "The rows are a course of time: against all of training PSI shows the season too. Found is what no calendar makes.") : null,
    data.hidden.length ? el("p", { class: "note" }, `Of columns for machines only nothing but their drift is shown: ${data.hidden.join(", ")}.`) : null,
    data.outside ? el("p", { class: "note" }, `${percent(data.outside)} of the hours are of days that the training set did not have.`) : null,
    columns.length ? el("details", { class: "numbers" }, el("summary", {}, "Columns as a table"), listed(data, open)) : null);
  return el("div", { class: "split" + (chosen ? " opened" : "") }, map,
    el("section", { class: "side", "aria-live": "polite", "aria-label": "Distribution" }, chosen ? spread(column, data, chosen, route) : hint(now, open)));
}

function listed({ at, columns, open: now }, open) {
  const last = (column) => column.psi[column.psi.length - 1];
  return table("Columns", ["Column", "Largest", "Last window", "Open window", ""], columns.map((column) => [column.name,
    psi(Math.max(...column.psi.filter((value) => value !== null), 0)), psi(last(column)), psi(now?.psi[column.name]),
    column.is_hidden ? "for machines only" : el("button", { type: "button", onclick: () => open(column.name, at.length - 1) }, "Distribution")]), [1, 2, 3]);
}

function hint(now, open) {
  return panel("Distributions", "Click a cell, or walk there with the arrow keys and press Enter.",
    now ? [el("p", { class: "note" }, `The open window, since ${shortly(now.since)}, has ${whole(now.rows)} rows:`),
      el("div", { class: "buttons" }, Object.entries(now.psi).sort((a, b) => (b[1] ?? -1) - (a[1] ?? -1)).slice(0, 8)
        .map(([name, value]) => el("button", { type: "button", onclick: () => open(name, -1) }, name, " ", el("b", {}, psi(value)))))] : null);
}

function spread(found, data, chosen, { go }) {
  const close = el("button", { type: "button", class: "close", "aria-label": "Close the distribution", onclick: () => go({ column: "", at: "" }) }, "✕");
  const of = data.columns.find((column) => column.name === chosen.column);
  const course = of ? chart({ label: `PSI of ${chosen.column}`, at: data.at.map(([, until]) => until), height: 120, from: 0, show: (value) => psi(value),
    level: { value: data.floor, label: "matters from here" }, series: [{ label: "PSI", values: of.psi, color: "accent", kind: "line" }] }) : null;
  if (!found || found.is_hidden)
    return panel(chosen.column, "This column is for machines only: no value of it, and no distribution, is shown.", close, course);
  if (!found.labels.length) return panel(chosen.column, "No counts are kept of it in this step.", close, course);
  const which = found.until ? `${between(found.since, found.until)}, ${plural(found.windows, "window")}` : `the open window, since ${shortly(found.since)}`;
  const facts = found.reference ? found.untested ? [["Not tested", found.untested]] : [["PSI", `${short(found.psi)}, less its bias ${psi(found.psi_corrected)}`], ["Jensen–Shannon", short(found.js)],
    ["G test", `${short(found.g)} with ${found.degrees} degrees of freedom, p ${chance(found.p)}`]] : [["Reference", `that of version ${found.version} is not at hand`]];
  return panel(chosen.column, `${which}; version ${found.version}, ${whole(found.rows)} rows`, close,
    distribution(found), el("ul", { class: "legend" }, found.reference && el("li", { class: "dot-second bars" }, "reference"), el("li", { class: "dot-accent bars" }, "this window")),
    found.evidence && el("p", { class: "evidence" }, found.evidence),
    el("dl", { class: "facts" }, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    el("details", { class: "numbers" }, el("summary", {}, "Numbers"), table(`Shares of ${chosen.column}`, ["Values", ...(found.reference ? ["Reference"] : []), "Window"],
      found.labels.map((label, at) => [label, ...(found.reference ? [percent(found.reference[at])] : []), percent(found.current[at])]), [1, 2])),
    course);
}

const closes = ({ watched }) => ["A window closes after ", watched ? lasting(watched.window_s) : code("monitoring.window"), " and 50 rows; ",
  code("mlops-ray replay"), " shows what past data would have looked like."];

// ---------------------------------------------------------------- performance

function performance(data, route, head) {
  const names = Object.keys(data.metrics);
  if (!names.length) return empty("No window with an estimate has closed in this period.", ...closes(head));
  names.sort((a, b) => (b === data.decides) - (a === data.decides));
  const labelled = data.labelled.reduce((a, b) => a + b, 0);
  return [
    el("p", { class: "lead" }, `Estimated from rows without labels, which does not see that the same inputs mean something else; measured where labels came (${plural(labelled, "row")}). `,
      `The shaded band is where ${data.within} of 100 windows lie by chance alone.`,
      labelled ? null : ["  Labels come by ", code(`POST /v2/models/${head.name}/labels`), " or ", code("mlops-ray labels load FILE"), "."]),
    panel(words(names[0]), names[0] === data.decides ? "the metric that decides" : null, course(names[0], data, route, 260)),
    names.length > 1 && el("div", { class: "metrics" }, names.slice(1).map((name) => panel(words(name), null, course(name, data, route, 170)))),
    data.segments.length ? panel("The worst segments", "Each as the last look had it to which it was among the least likely; beside it the same segment of the test part", worst(data.segments)) : null,
    data.splits.length ? panel("What the loss has grown by", "Of labels that came: moved inputs, other shares of labels, and what is left, which is another relation of the two (concept drift)",
      some(7, data.splits.toReversed(), (rows, more) => table(`What the loss has grown by${more}`, ["Window's end", "Test part", "Now", "By inputs", "By labels", "What is left"],
        rows.map((each) => [shortly(seconds(each.until)), ...[each.before, each.now, each.inputs, each.labels, each.rest].map(short)]), [1, 2, 3, 4, 5]))) : null,
  ];
}

function course(name, { at, metrics }, { span }, height) {
  const { estimated, realised } = metrics[name], times = at.map(([, until]) => until);
  const has = (of) => of.values.some((value) => value !== null);
  const around = (of) => of.values.map((value, step) => (value === null || of.bands[step] === null ? null : [Math.max(0, value - of.bands[step]), value + of.bands[step]]));
  const usual = realised.usual ?? estimated.usual, reference = realised.reference ?? estimated.reference;
  const series = [
    usual && { label: "usual", values: times.map(() => usual), color: "band", kind: "band" },
    has(realised) && { label: "by labels, 95 % band", values: around(realised), color: "band-2", kind: "band" },
    has(estimated) && { label: "estimated", values: estimated.values, color: "second", kind: "line" },
    has(realised) && { label: "by labels", values: realised.values, color: "accent", kind: "line" },
  ].filter(Boolean);
  return chart({ label: words(name), at: times, height, onspan: span, series, level: reference === null || reference === undefined ? undefined : { value: reference, label: "test part" } });
}

function worst(segments) {
  const three = (of) => (of ? of.map((value, at) => (at < 2 ? short(value) : whole(value))) : ["–", "–", "–"]);
  return some(10, segments, (rows, more) => table(`The worst segments${more}`, ["Segment", "Metric", "Estimated", "in the test", "rows", "By labels", "in the test", "rows"],
    rows.map((row) => [`${row.column} = ${row.value}`, words(row.metric), ...three(row.estimated), ...three(row.realised)]), [2, 3, 4, 5, 6, 7]));
}

// ---------------------------------------------------------------- alarms

function alarms(data, { chosen, link, parts }, head) {
  const { watched } = data, base = `models/${encodeURIComponent(parts[1])}`;
  const budget = watched && `At most ${short(watched.false_alarms[0])} false ${watched.false_alarms[0] === 1 ? "alarm" : "alarms"} in ${lasting(watched.false_alarms[1])} ${watched.false_alarms[0] === 1 ? "is" : "are"} to be expected. `;
  return [
    el("p", { class: "lead" }, budget, `${plural(data.looks, "look")} ${chosen.words}, at ${compact(data.rows)} rows${watched ? `, spent ${short(data.spent)} of it` : ""}.`,
      data.last ? ` The last one was at the window until ${shortly(data.last)}.` : ""),
    loop(data.loop),
    data.alarms.length ? el("ol", { class: "alarms" }, data.alarms.map((each) => episode(each, link, base)))
      : empty(`No alarm ${chosen.words}.`, data.total ? `There were ${plural(data.total, "alarm")} before; choose a longer period.` : data.looks ? "All that was looked at is as usual." : "", ...(data.looks ? [] : closes(head))),
  ];
}

function episode({ version, opened, resolved, found }, link, base) {
  const going = resolved === null, kinds = { performance: "performance", input: "drift", prediction: "drift", joint: "drift", data: "features" };
  return el("li", { class: "episode" + (going ? " bad" : ""), "data-key": opened },
    el("div", { class: "head" }, el("h2", {}, when(opened)), chip(going ? "bad" : "ok", going ? `goes on, ${since(opened)}` : `over after ${lasting(resolved - opened)}`),
      el("span", { class: "note" }, `version ${version}` + (going ? "" : `, until ${when(resolved)}`))),
    el("ul", { class: "found" }, found.map((what) => el("li", {},
      chip("", what.said), el("div", {}, el("p", {}, el("strong", {}, words(what.about)), what.evidence ? `: ${what.evidence}` : ""),
        el("p", { class: "note" }, `seen ${when(what.since)} · `, el("a", { href: link(`${base}/${kinds[what.kind] ?? "drift"}`, { from: Math.floor(opened - 14 * 86400), to: Math.ceil((resolved ?? Date.now() / 1000) + 86400) }) }, "what it looked like")))))));
}

/** What the loop of retraining has decided and done, where there is one. */
function loop(found) {
  if (!found) return null;
  const { decided, next, retrainings } = found, kinds = { champion: "ok", failed: "bad", rolled_back: "bad", refused: "warn", inconclusive: "warn" };
  const going = retrainings.find((each) => each.ended === null && each.state !== "withdrawn");
  const said = { retrain: "train again", wait: "wait", refuse: "refuse" };
  return panel("Retraining", going ? `Going on since ${when(going.at)}: ${words(going.state)}` : next ? `The next one is allowed from ${when(next)}` : null,
    decided && el("p", {}, chip(decided.what === "refuse" ? "warn" : "", said[decided.what] ?? decided.what), ` ${decided.reason} `, el("span", { class: "note" }, `(since ${shortly(decided.since)})`)),
    retrainings.length ? table("Retrainings", ["Asked", "State", "Version", "Why", "What became of it", "Took"], retrainings.toReversed().map((each) =>
      [when(each.at), chip(kinds[each.state] ?? "", words(each.state)), each.version === null ? "–" : String(each.version), each.reason, each.said || "–", each.ended === null ? "goes on" : lasting(each.ended - each.at)])) : el("p", { class: "note" }, "None was needed so far."));
}

// ---------------------------------------------------------------- releases

function releases(data, route, head) {
  const { champion, previous, challenger, step } = data;
  const sides = [["Champion", champion], ["Challenger", challenger], ["Before it", previous]].filter(([, of]) => of);
  const metrics = [...new Set(sides.flatMap(([, of]) => Object.keys(of.metrics ?? {})))];
  return [
    step && panel(`Version ${step.version}: ${words(step.state)}`, `since ${when(seconds(step.since))}`,
      el("ol", { class: "steps" }, ["registered", "verified", "shadow", "canary", "champion"].map((name) =>
        el("li", { class: name === step.state ? "now" : null, "aria-current": name === step.state ? "step" : null }, words(name), name === "canary" && step.weight ? ` ${percent(step.weight / 100)}` : ""))),
      el("dl", { class: "facts" }, Object.entries(data.evidence).map(([name, value]) => [el("dt", {}, words(name)), el("dd", {}, short(value))]))),
    el("div", { class: "pair" }, panel("Versions", "Metrics are those of the test part of each",
      table("Versions", ["", ...sides.map(([name, of]) => `${name}, ${of.version}`)], [
        ["State", ...sides.map(([, of]) => words(of.state))], ["Family", ...sides.map(([, of]) => words(of.family ?? "–"))],
        ["Trained", ...sides.map(([, of]) => (of.created_at ? when(seconds(of.created_at)) : "–"))],
        ["Since", ...sides.map(([, of]) => when(seconds(of.since)))],
        ...metrics.map((name) => [words(name), ...sides.map(([, of]) => short(of.metrics?.[name]))]),
        ["Digest", ...sides.map(([, of]) => code((of.digest ?? "").slice(0, 12)))],
      ], sides.map((_, at) => at + 1))),
    panel("Log of releases", plural(data.history.length, "turn"),
      el("ol", { class: "log" }, data.history.map((turn) => el("li", { "data-key": turn.turn }, el("time", {}, when(seconds(turn.at))),
        chip({ champion: "ok", rolled_back: "bad", refused: "bad", inconclusive: "warn" }[turn.state] ?? "", words(turn.state)),
        el("span", {}, el("b", {}, `version ${turn.version}`), turn.state === "canary" ? `, step ${turn.step + 1}` : "", turn.reason ? `: ${turn.reason}` : "")))))),
    loop(data.loop),
  ];
}

// ---------------------------------------------------------------- features

function features(data, route) {
  if (!data.features.length) return empty("The package of the live version cannot be read.", "See the errors of the service.");
  const { at, figures } = data, times = at.map(([, until]) => until), now = Date.now() / 1000;
  const most = Math.max(...data.features.map((each) => each.importance ?? 0), 1e-12);
  return [
    data.sources.length ? panel("Freshness", "Up to when all that is known of a source is in the online store",
      el("dl", { class: "tiles few" }, data.sources.map(({ source, until, limit_s, said }) => {
        const late = until !== null && limit_s && now - until > limit_s;
        return tile(source, until === null ? "not there" : ago(until), until === null ? said || "mlops-ray features materialize" : `${when(until)}${limit_s ? `; at most ${lasting(limit_s)}` : ""}`, late || until === null ? "bad" : limit_s ? "ok" : "");
      }))) : null,
    panel("Features", plural(data.features.length, "feature"),
      table("Features", ["Feature", "Type", "Made of", "Weight", "PSI, last window", "Computed again"], data.features.map((each) => [
        el("span", {}, each.name, each.is_hidden ? [" ", chip("", "machines only")] : null, each.is_clock ? [" ", chip("", "clock")] : null), each.type, code(each.made_of),
        each.importance === null ? "–" : el("span", { class: "weight" }, bar(Math.max(0, each.importance) / most, "accent")),
        psi(each.psi), each.skew ? (each.skew[0] ? el("span", { class: "badly" }, `${whole(each.skew[0])} of ${whole(each.skew[1])} differ`) : `${whole(each.skew[1])} alike`) : "–"]), [4, 5])),
    el("div", { class: "metrics" }, Object.entries(figures).filter(([, of]) => of.values.some((value) => value !== null)).map(([name, { title, unit, values }]) =>
      panel(title, unit, chart({ label: title, at: times, from: 0, height: 150, show: (value) => (unit === "share" ? percent(value) : compact(value)), onspan: route.span, series: [{ label: unit, values, color: "accent", kind: "line" }] })))),
  ];
}

// ---------------------------------------------------------------- runs, costs

function runs(data) {
  const jobs = data.runs.filter((run) => !run.parent);
  if (!jobs.length) return empty("No run was written down yet.", "Each training leaves one: ", code("mlops-ray train"), "; ", code("mlops-ray runs"), " brings older ones here.");
  return panel("Runs", `${plural(jobs.length, "job")}, the newest first; the score of a job is that of the test part, of a trial that of validation`, el("ul", { class: "runs" }, jobs.map((job) => {
    const trials = data.runs.filter((run) => run.parent === job.run);
    return el("li", { "data-key": job.run }, el("details", {}, el("summary", {}, el("time", {}, when(seconds(job.started))), code(job.run.slice(0, 8)), el("b", {}, words(job.family || "no winner")),
      el("span", {}, job.score === null ? words(job.state) : `${words(job.metric)} ${short(job.score)}`), el("span", { class: "note" }, `${plural(trials.length, "trial")}, ${lasting(job.seconds)}, ${hasCost(job) ? `${short(job.cost)} ${job.currency}, ` : ""}${compact(job.rows)} rows`)),
    trials.length ? tried(job, trials) : el("p", { class: "note" }, "No trial was written down.")));
  })));
}

const hasCost = (run) => run.cost !== null && run.cost !== undefined;

/** The trials of a job: quality against what each cost, or where nobody knows that, against what it took. */
function tried(job, trials) {
  const known = trials.filter((trial) => trial.score !== null), scores = known.map((trial) => trial.score), isPriced = trials.some(hasCost);
  const best = ["mae", "rmse", "relative_mae", "log_loss", "brier"].includes(job.metric) ? Math.min(...scores) : Math.max(...scores);
  // Who was stopped early is scored on fewer folds.
  const points = known.filter((trial) => trial.state !== "stopped" && (!isPriced || hasCost(trial)))
    .map((trial) => [isPriced ? trial.cost : trial.seconds, trial.score, `${trial.run.slice(0, 8)}, ${words(trial.family)}`, trial.score === best]);
  const axis = isPriced ? `cost of fits, ${job.currency}` : "seconds of fits";
  return [points.length > 1 ? scatter(`Quality of the trials of ${job.run} against their cost`, [axis, words(job.metric)], points) : null,
    table(`Trials of ${job.run}`, ["Trial", "Family", "Score", "Folds", "Fit", ...(isPriced ? [`Cost, ${job.currency}`] : []), "Answer", "Parameters"], trials.map((trial) => [code(trial.run.slice(0, 8)), words(trial.family),
      el(trial.score !== null && trial.score === best ? "b" : "span", {}, trial.score === null ? words(trial.state) : short(trial.score)),
      String(trial.folds), lasting(trial.seconds), ...(isPriced ? [short(trial.cost)] : []), trial.predict_us ? `${short(trial.predict_us)} µs` : "–",
      Object.entries(trial.params).map(([name, value]) => `${name} ${typeof value === "number" ? short(value) : value}`).join(", ")]), isPriced ? [2, 3, 4, 5, 6] : [2, 3, 4, 5])];
}

function costs({ cost, keys }, { chosen }) {
  if (!cost) return empty("No costs were worked out yet.", code("mlops-ray cost"), " does it.");
  const per = cost.per_1000, parts = cost.parts ?? [], days = cost.days ?? [], { budget } = cost;
  const isSpent = budget && budget.spent >= budget.per_day;
  return [
    ...(cost.notes ?? []).map((note) => el("p", { class: "note" }, note)),
    el("dl", { class: "tiles" }, per && tile("Per 1,000 predictions", `${short(per.amount)} ${per.currency}`, `${sinceWhen(per)}, as of ${when(cost.at)}`),
      budget && tile("Spent today (UTC)", `${short(budget.spent)} of ${short(budget.per_day)} ${cost.total.currency}`, !isSpent ? "of the day's budget" : budget.holds ? "no replica is added, nothing is trained by itself" : "more than the day's budget", isSpent ? "bad" : "ok")),
    parts.length ? panel("What it is made of", cost.prices?.length ? `By prices of: ${cost.prices.join("; ")}` : null, table("Parts", ["Part", "Amount"], parts.map(({ name, amount }) => [words(name), short(amount)]), [1])) : null,
    cost.jobs?.length ? panel("Trainings and other jobs", "Of today and yesterday, with their part of what nobody used; they count against the day's budget, and are no part of what predictions cost",
      some(10, cost.jobs, (rows, more) => table(`Trainings and other jobs${more}`, ["What ran", `Cost, ${cost.total.currency}`], rows.map(({ name, amount }) => [name, short(amount)]), [1]))) : null,
    keys?.length ? panel("By key", `Who asked ${chosen.words}: of a day's cost each bears its share of the day's rows; mlops-ray cost reckons by the hour`, table("Keys", ["Key", "Version", "Predictions", `Cost, ${cost.total.currency}`, "Per 1,000"],
      keys.map(({ key, version, rows, cost: spent }) => [key || "not known", version || "–", whole(rows), short(spent), short((1000 * spent) / rows)]), [2, 3, 4])) : null,
    keys === null && el("p", { class: "note" }, "What each key's predictions cost is shown to who holds a key of role admin."),
    days.length ? panel("Day by day", per?.currency, chart({ label: "Cost a day", at: days.map(([at]) => at), from: 0, series: [{ label: per?.currency ?? "cost", values: days.map(([, amount]) => amount), color: "accent", kind: "bars" }] })) : null,
  ];
}
