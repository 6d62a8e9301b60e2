// Layers × module kinds as a grid of cells: coloured by a number, chosen with a click or the arrow keys.

import { el, fill, unique } from "./dom.js";
import { css, ink, shade } from "./scale.js";

const MOST_WRITTEN = 40; // more columns leave no room for numbers
const TIP = el("div", { class: "tip", "aria-hidden": "true", hidden: true }); // one for all maps; cells carry the same text

/** @typedef {{row: number, column: number, items: number[]}} Cell items: places of the matrices in it. */

export class HeatMap {
  /**
   * @param {Object} axes names of `rows` (module kinds) and `columns` (layers; null is outside of them).
   * @param {Cell[]} cells
   * @param {(cell: Cell) => void} choose called when a cell is chosen.
   */
  constructor({ rows, columns }, cells, choose) {
    this.rows = rows;
    this.columns = columns;
    this.cells = cells;
    this.choose = choose;
    this.at = new Map(cells.map((cell) => [`${cell.row},${cell.column}`, cell]));
    this.node = this.build();
  }

  build() {
    const id = unique("map");
    const lines = [el("div", { role: "row", class: "map-row" },
      el("div", { role: "columnheader", class: "map-corner" }, el("span", { class: "hidden" }, "module kind")),
      ...this.columns.map((layer, column) => el("div", {
        role: "columnheader", class: "map-layer", style: `--layer:${column + 2};--kind:1`,
      }, el("span", { class: "hidden" }, layer === null ? "outside the layers" : "layer "), layer ?? "–")))];
    this.rows.forEach((kind, row) => {
      lines.push(el("div", { role: "row", class: "map-row" },
        el("div", { role: "rowheader", class: "map-kind", style: `--layer:1;--kind:${row + 2}`, title: kind }, kind),
        ...this.columns.map((_, column) => this.cellNode(row, column))));
    });
    const size = `--layers:${this.columns.length};--kinds:${this.rows.length}`;
    const dense = this.columns.length > MOST_WRITTEN ? " dense" : "";
    return el("div", {
      role: "grid", id, class: `map${dense}`, style: size, "aria-label": "Matrices by layer and module kind",
      keydown: (event) => this.moved(event), mouseleave: () => this.hideTip(), focusout: () => this.hideTip(),
    }, ...lines);
  }

  cellNode(row, column) {
    const cell = this.at.get(`${row},${column}`);
    const place = `--layer:${column + 2};--kind:${row + 2}`;
    if (!cell) return el("div", { role: "gridcell", class: "map-none", style: place }, el("span", { class: "hidden" }, "none"));
    cell.node = el("div", {
      role: "gridcell", class: "map-cell", style: place, tabindex: -1, click: () => this.select(cell, true),
      mouseenter: () => this.showTip(cell), focus: () => this.showTip(cell),
    });
    return cell.node;
  }

  /**
   * Colours and labels all cells.
   * @param {(cell: Cell) => number|null} value
   * @param {Scale} scale
   * @param {(cell: Cell, value: number|null) => {short: string, long: string}} words
   */
  paint(value, scale, words) {
    for (const cell of this.cells) {
      const number = value(cell);
      const { short, long } = words(cell, number);
      const rgb = number === null ? null : shade(scale.share(number));
      cell.node.style.backgroundColor = rgb ? css(rgb) : "transparent";
      cell.node.style.color = rgb ? ink(rgb) : "inherit";
      cell.node.setAttribute("aria-label", long);
      fill(cell.node, short);
    }
  }

  /** The label of a cell, next to it while it is pointed at or focused. */
  showTip(cell) {
    fill(TIP, cell.node.getAttribute("aria-label"));
    if (!TIP.isConnected) document.body.append(TIP);
    TIP.hidden = false;
    const box = cell.node.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - TIP.offsetWidth - 4);
    const above = box.top - TIP.offsetHeight - 6;
    TIP.style.left = `${Math.max(left, 4)}px`;
    TIP.style.top = `${above < 4 ? box.bottom + 6 : above}px`;
  }

  hideTip() {
    TIP.hidden = true;
  }

  /** Marks a cell as the chosen one; `notify` calls `choose`, for a choice by the reader. */
  select(cell, notify = false) {
    for (const other of this.cells) {
      other.node.setAttribute("aria-selected", String(other === cell));
      other.node.tabIndex = other === cell ? 0 : -1;
    }
    this.selected = cell;
    if (notify) {
      cell.node.focus();
      this.choose(cell);
    }
  }

  moved(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const ends = { Home: -1, End: 1 };
    if (!this.selected || !(event.key in steps || event.key in ends)) return;
    event.preventDefault();
    if (event.key in ends) return this.toEnd(ends[event.key]);
    let [dx, dy] = steps[event.key];
    if (getComputedStyle(this.node).getPropertyValue("--turned").trim() === "1") [dx, dy] = [dy, dx];
    let { row, column } = this.selected;
    do {
      row += dy;
      column += dx;
    } while (row >= 0 && row < this.rows.length && column >= 0 && column < this.columns.length
      && !this.at.has(`${row},${column}`));
    const next = this.at.get(`${row},${column}`);
    if (next) this.select(next, true);
  }

  /** Chooses the first or the last cell of the row. */
  toEnd(direction) {
    const inRow = this.cells.filter((cell) => cell.row === this.selected.row).sort((a, b) => a.column - b.column);
    this.select(direction < 0 ? inRow[0] : inRow[inRow.length - 1], true);
  }
}

/** The scale under a map: its colours, and the numbers at its ends. */
export function legend(scale, words, text) {
  const colors = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1].map((share) => css(shade(share)));
  return el("div", { class: "map-legend" },
    el("span", {}, text(scale.lowest)),
    el("span", { class: "map-ramp", style: `background:linear-gradient(90deg, ${colors.join(",")})` }),
    el("span", {}, text(scale.highest)),
    el("span", { class: "soft" }, words + (scale.logarithmic ? ", logarithmic" : "")));
}
