/* Addresses, the frame around the pages, and what keeps them up to date.

   An address says all that is shown: `#/models/NAME/drift?period=30d&column=load`. A page is a module with
   `urls(route)`, the documents that it needs, and `build(documents, route)`, its nodes. What is shown is asked
   for again every few seconds, and changed where it is another. */

import * as errors from "./errors.js";
import * as model from "./model.js";
import * as models from "./models.js";
import { children, draw, el } from "./dom.js";
import { clock, shortly, zone } from "./format.js";

const PERIODS = [["1h", "1 h", "in the last hour"], ["24h", "24 h", "in the last 24 hours"], ["7d", "7 d", "in the last 7 days"],
  ["30d", "30 d", "in the last 30 days"], ["quarter", "Quarter", "in the last quarter"], ["year", "Year", "in the last year"]];
const USUAL = "7d";
/* A replica reports every 2 s; a picture of a month does not change that soon. */
const REFRESH_MS = { "1h": 5000, "24h": 10000 }, LATER_MS = 20000;
const main = document.getElementById("main"), live = document.getElementById("live"), said = document.getElementById("said");

function read() {
  const [path, text = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decoded), query = new URLSearchParams(text);
  const known = PERIODS.find(([name]) => name === query.get("period"));
  const isSpan = query.get("from") && query.get("to");
  const period = isSpan ? `from=${query.get("from")}&to=${query.get("to")}` : `period=${known ? known[0] : USUAL}`;
  const chosen = isSpan ? { name: null, words: `${shortly(+query.get("from"))} to ${shortly(+query.get("to"))}` }
    : { name: known ? known[0] : USUAL, words: (known ?? PERIODS.find(([name]) => name === USUAL))[2] };
  const link = (to, more = {}) => {
    const kept = new URLSearchParams(period === `period=${USUAL}` ? "" : period);
    for (const [name, value] of Object.entries(more)) if (value !== "" && value !== null) kept.set(name, value);
    return `#/${to}${kept.size ? "?" + kept : ""}`;
  };
  return { path, parts, query, period, chosen, link, model: parts[0] === "models" ? parts[1] : undefined,
    span: (since, until) => { location.hash = own(path, query, { period: "", from: Math.floor(since), to: Math.ceil(until) }); },
    // What is typed is no step to go back to.
    change: (more) => { history.replaceState(null, "", own(path, query, more)); show(); },
    go: (more) => { location.hash = own(path, query, more); } };
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

function own(path, query, more) {
  const asked = new URLSearchParams(query);
  for (const [name, value] of Object.entries(more)) value === "" || value === null ? asked.delete(name) : asked.set(name, value);
  return `#/${path}${asked.size ? "?" + asked : ""}`;
}

const pageOf = ({ parts }) => (parts[0] === "errors" ? errors : parts[0] === "models" && parts[1] ? model : models);

function frame(route) {
  const { parts, link, chosen, path, query } = route;
  const current = (is) => (is ? "page" : null);
  const place = (to, text, is) => el("a", { href: link(to), "aria-current": current(is) }, text);
  children(document.getElementById("places"), el("nav", {},
    place("", "Models", parts[0] !== "errors"), place("errors", "Errors", parts[0] === "errors")));
  document.querySelector(".brand").href = link("");
  children(document.getElementById("periods"), el("nav", {},
    PERIODS.map(([name, text]) => el("a", { href: own(path, query, { period: name === USUAL ? "" : name, from: "", to: "" }),
      "aria-current": chosen.name === name ? "true" : null }, text)),
    chosen.name ? null : el("span", { class: "span" }, chosen.words)));
  document.title = [parts[1] ?? (parts[0] === "errors" ? "Errors" : "Models"), parts[2], "mlops_ray"].filter(Boolean).join(" · ");
}

let shown = { path: null, text: null }, asking = 0, waiting;

/** Asks for what the address says, and shows it; of two at a time the later one counts. */
async function show() {
  const route = read(), page = pageOf(route), mine = ++asking;
  clearTimeout(waiting);
  const isOther = shown.path !== route.path;
  frame(route);
  if (isOther && !main.firstChild) children(main, el("main", {}, el("div", { class: "waits", "aria-hidden": "true" })));
  main.setAttribute("aria-busy", "true");
  try {
    const urls = Object.entries(page.urls(route));
    const texts = await Promise.all(urls.map(([, url]) => ask(url)));
    if (mine !== asking) return;
    const text = location.hash + texts.join();
    if (text !== shown.text) {
      const documents = Object.fromEntries(urls.map(([name], at) => [name, JSON.parse(texts[at])]));
      children(main, el("main", {}, page.build(documents, route)));
      draw(main);
      if (isOther) arrived(route);
    }
    shown = { path: route.path, text };
    live.className = "live on";
    live.removeAttribute("role");
    said.textContent = `Live, ${clock(Date.now() / 1000)}`;
  } catch (error) {
    if (mine !== asking) return;
    // There is an answer, and it is that there is nothing.
    const isNothing = error.status === 404 || error.status === 400;
    live.className = isNothing ? "live on" : "live off";
    live.setAttribute("role", "alert");
    // What has no status and is no failure of the network is a defect of the page.
    if (error.status === undefined && !error.isAway) console.error(error);
    said.textContent = isNothing ? "nothing here" : `no answer (${error.message}); trying again`;
    if (isNothing) {
      children(main, el("main", {}, el("h1", { tabindex: -1 }, "Nothing here"), el("p", {}, error.message),
        el("p", {}, el("a", { href: "#/" }, "All models"))));
      shown = { path: route.path, text: null };
    }
  }
  main.removeAttribute("aria-busy");
  if (!document.hidden) waiting = setTimeout(show, REFRESH_MS[route.chosen.name] ?? LATER_MS);
}

async function ask(url) {
  const reply = await fetch(`/dashboard/data/${url}`, { credentials: "same-origin", cache: "no-cache" })
    .catch((error) => { throw Object.assign(error, { isAway: true }); });
  // The session is over: the form asks for a key, and leads back here.
  if (reply.status === 401) location.reload();
  const text = await reply.text();
  if (reply.ok) return text;
  let words = `status ${reply.status}`;
  try { words = JSON.parse(text).error; } catch { /* not one of ours */ }
  throw Object.assign(new Error(words), { status: reply.status });
}

/** Another page begins at its top; who follows a link with the keyboard is at its heading. */
function arrived() {
  const tab = main.querySelector(".tabs [aria-current]"), tabs = tab?.parentElement;
  if (tab) tabs.scrollLeft = tab.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - tab.offsetWidth) / 2;
  if (shown.path === null) return;
  scrollTo(0, 0);
  main.querySelector("h1")?.focus({ preventScroll: true });
}

/** Pictures are drawn in the pixels that they get. */
new ResizeObserver(() => draw(main)).observe(main);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(main));
addEventListener("hashchange", show);
document.querySelector(".skip").onclick = (event) => { event.preventDefault(); main.focus(); };
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(waiting) : show()));
document.getElementById("zone").textContent = `Times are those of ${zone()}`;
show();
