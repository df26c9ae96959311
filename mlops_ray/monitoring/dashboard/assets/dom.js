/* Making nodes, and changing those that are shown into new ones without a flicker.

   Everything that comes from outside goes into text nodes and attributes, never into markup. */

const SVG = "http://www.w3.org/2000/svg";

/** A node of HTML. Attributes that are null or false are left out; functions are handlers ("onclick"). */
export const el = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);

/** A node of SVG. */
export const svg = (tag, attributes, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node[name] = value;
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const HANDLERS = ["onclick", "oninput", "onchange", "onkeydown", "onsubmit", "ontoggle"];

/** Makes `old`, which is shown, what `fresh` is: nodes that are alike stay, and with them focus and scroll.

    A node with a `drawing` is a picture: it stays, and is drawn anew with the new one's data. */
export function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key || !old.drawing !== !fresh.drawing)
    return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes])
    // Whether a detail is open is the reader's choice.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const name of HANDLERS) if (old[name] || fresh[name]) old[name] = fresh[name];
  if (fresh.drawing) {
    old.drawing = fresh.drawing;
    return;
  }
  if (old.nodeName === "INPUT" && old !== document.activeElement) old.value = fresh.getAttribute("value") ?? "";
  children(old, fresh);
  if (old.nodeName === "SELECT" && old !== document.activeElement) old.value = fresh.value;
}

/** The same of the children alone. */
export function children(old, fresh) {
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((node, at) => (at < before.length ? morph(before[at], node) : old.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

/** Draws all pictures below a node; those of the size and the data that they had stay as they are. */
export function draw(root) {
  for (const host of root.querySelectorAll("[data-drawn]")) host.drawing(host);
}

/** A place for a picture, which `drawing(host)` makes or brings up to date. */
export function picture(drawing, attributes) {
  const host = el("div", { "data-drawn": true, ...attributes });
  host.drawing = drawing;
  return host;
}

/** A box with a title, a remark, and what belongs to it. */
export const panel = (title, note, ...content) =>
  el("section", { class: "panel" },
    title && el("div", { class: "head" }, el("h2", {}, title), note && el("p", { class: "note" }, note)), ...content);

export const chip = (kind, text) => el("span", { class: "chip " + kind }, text);

/** What there is to do where there is nothing to show. */
export const empty = (title, ...todo) => el("div", { class: "empty" }, el("strong", {}, title), el("p", {}, ...todo));

export const code = (text) => el("code", {}, text);

/** A figure with its name, and a remark. */
export const tile = (name, value, note, kind) =>
  el("div", { class: "tile" + (kind ? " " + kind : "") },
    el("dt", {}, name), el("dd", {}, el("b", {}, value), note && el("span", {}, note)));

/** Some of many, and the rest for who wants it; `shown` is told what tells the names of the two apart. */
export const some = (most, rows, shown) => rows.length <= most ? shown(rows, "")
  : [shown(rows.slice(0, most), ""), el("details", { class: "numbers" }, el("summary", {}, `${rows.length - most} more`), shown(rows.slice(most), ", the others"))];

/** A table; `numbers` are the positions of columns to be set to the right. */
export function table(caption, head, rows, numbers = []) {
  const side = (at) => (numbers.includes(at) ? "number" : null);
  return el("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {},
      el("thead", {}, el("tr", {}, head.map((text, at) => el("th", { scope: "col", class: side(at) }, text)))),
      el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, at) => el("td", { class: side(at) }, cell)))))));
}
