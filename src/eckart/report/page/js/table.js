// Tables that can be sorted by any column and filtered by any word.

import { el, fill } from "./dom.js";
import { whole } from "./format.js";
import { scrolled } from "./parts.js";

const MOST_ROWS = 1000; // at once; more would slow the page down, and a filter finds them
const NAMES = new Intl.Collator("en", { numeric: true }); // layer 2 comes before layer 10
const FEW_ROWS = 8; // need no filter

/** @typedef {{key: string, label: string, value: (row: number) => *, text: (row: number) => string, numeric: boolean}} Column */

export class DataTable {
  /**
   * @param {string} label what the rows are, such as "matrices".
   * @param {number[]} rows in the order in which they are shown first.
   * @param {Column[]} columns the first one names the row.
   * @param {(row: number) => void} [choose] called with a row whose name was clicked.
   */
  constructor(label, rows, columns, choose = null) {
    Object.assign(this, { label, columns, choose, all: rows });
    this.order = { key: null, down: false };
    this.query = "";
    this.body = el("tbody");
    this.status = el("p", { class: "soft", role: "status" });
    this.heads = new Map(columns.map((column) => [column.key, this.head(column)]));
    this.field = el("input", { type: "search", placeholder: "Filter", "aria-label": `Filter ${label}`,
      input: (event) => { this.query = event.target.value; this.render(); } });
    this.node = el("div", { class: "table" },
      el("div", { class: "table-head" }, rows.length > FEW_ROWS ? this.field : null, this.status),
      scrolled(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table of ${label}` },
        el("table", {}, el("thead", {}, el("tr", {}, ...this.heads.values())), this.body))));
  }

  head(column) {
    return el("th", { scope: "col", class: column.numeric ? "number" : null, "aria-sort": "none" },
      el("button", { type: "button", class: "sort", click: () => this.sort(column.key) }, column.label,
        el("span", { class: "arrow", "aria-hidden": "true" })));
  }

  /** Numbers start with the largest, names with a. */
  sort(key) {
    const column = this.columns.find((one) => one.key === key);
    const down = this.order.key === key ? !this.order.down : Boolean(column.numeric);
    this.order = { key, down };
    for (const [name, head] of this.heads) {
      head.setAttribute("aria-sort", name === key ? (down ? "descending" : "ascending") : "none");
    }
    this.render();
  }

  /** The rows that the filter leaves, in the order asked for; rows without a number come last. */
  rows() {
    const words = this.query.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = this.columns.filter((column) => !column.numeric);
    const left = this.all.filter((row) => {
      const text = texts.map((column) => column.text(row)).join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const column = this.columns.find((one) => one.key === this.order.key);
    if (!column) return left;
    const sign = this.order.down ? -1 : 1;
    const compared = (a, b) => (typeof a === "string" ? NAMES.compare(a, b) : a - b);
    const missing = (value) => value === null || value === undefined;
    return left.map((row) => [column.value(row), row]).sort(([a, i], [b, j]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b) || i - j;
      return sign * compared(a, b) || i - j;
    }).map(([, row]) => row);
  }

  /** Shows the rows again, after sorting, filtering or new numbers. */
  render() {
    const rows = this.rows();
    const shown = rows.slice(0, MOST_ROWS);
    fill(this.body, ...shown.map((row) => el("tr", {}, ...this.columns.map((column, place) => this.cell(row, column, place)))));
    if (!rows.length) this.body.append(this.empty());
    const more = shown.length < rows.length ? `; the first ${whole(shown.length)} are shown, filter for others` : "";
    fill(this.status, `${whole(rows.length)} of ${whole(this.all.length)} ${this.label}${more}`);
  }

  /** The row of a filter that matches nothing: it says so, and clears it. */
  empty() {
    const clear = () => { this.field.value = this.query = ""; this.render(); this.field.focus(); };
    return el("tr", {}, el("td", { class: "none", colspan: this.columns.length }, `No ${this.label} match “${this.query}”. `,
      el("button", { type: "button", class: "link", click: clear }, "Clear the filter")));
  }

  cell(row, column, place) {
    const text = column.text(row);
    if (place > 0) return el("td", { class: column.numeric ? "number" : null }, text);
    return el("th", { scope: "row" }, this.choose
      ? el("button", { type: "button", class: "link", click: () => this.choose(row) }, text) : text);
  }
}
