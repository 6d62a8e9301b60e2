// Pieces that several views share.

import { el, fill } from "./dom.js";

/** The head of a view: its subject, its finding, its source, and what comes under them. */
export function intro(kicker, finding, source, ...more) {
  return el("div", { class: "intro" }, el("p", { class: "kicker" }, kicker), el("h2", { class: "finding" }, finding),
    source === null ? null : el("p", { class: "soft name" }, source), ...more);
}

/** Numbers as tiles: [name, value, explanation] each. */
export function facts(list) {
  return el("dl", { class: "tiles card" }, ...list.map(([name, value, more]) => el("div", { class: "tile" }, el("dt", {}, name),
    el("dd", {}, el("span", { class: "tile-value" }, value), el("span", { class: "soft" }, more)))));
}

/** Cells of a map from items that know their `kind` (a row) and their `layer`. */
export function cellsOf(items, layers) {
  const cells = new Map();
  items.forEach((item, i) => {
    const column = layers.indexOf(item.layer);
    const key = `${item.kind},${column}`;
    if (!cells.has(key)) cells.set(key, { row: item.kind, column, items: [] });
    cells.get(key).items.push(i);
  });
  return [...cells.values()].sort((a, b) => a.row - b.row || a.column - b.column);
}

/** A box that scrolls, and under it a line that says so where a part of its content is hidden. */
export function scrolled(box) {
  const hint = el("p", { class: "soft help scroll-hint" });
  const update = () => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    const high = box.scrollHeight > box.clientHeight + 1;
    fill(hint, wide ? `Scroll sideways for more${high ? ", down for more rows" : ""}.` : high ? "Scroll down for more rows." : null);
  };
  const watch = new ResizeObserver(update);
  watch.observe(box);
  for (const child of box.children) watch.observe(child);
  return el("div", {}, box, hint);
}
