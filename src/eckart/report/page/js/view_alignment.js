// The tab of a comparison of two adapters or checkpoints: cosine and shared directions as a map and a table.

import { el, fill, select } from "./dom.js";
import { digits, inCell, median, shape, whole } from "./format.js";
import { HeatMap, legend } from "./heatmap.js";
import { cellsOf, facts, intro, scrolled } from "./parts.js";
import { Scale } from "./scale.js";
import { DataTable } from "./table.js";
import { onTheme } from "./theme.js";

const QUANTITIES = { cosine: "cosine", outputs: "φ of outputs", inputs: "φ of inputs" };
const COMPARED = { adapters: "updates", checkpoints: "weights", updates: "updates of the base" };

export class AlignmentView {
  constructor(comparison) {
    this.comparison = comparison;
    this.quantity = "cosine";
    const { a, b, base, kind, matrices, layers, kinds, total, unpaired } = comparison;
    const table = new DataTable("matrices", [...matrices.keys()], this.columns());
    table.render();
    this.map = new HeatMap({ rows: kinds, columns: layers }, cellsOf(matrices, layers), () => {});
    this.key = el("div", {});
    const lone = ["a", "b"].map((side) => unpaired.filter((item) => item.side === side).length);
    const notes = [
      lone.some(Boolean) ? `Only in A: ${lone[0]}, only in B: ${lone[1]}; a missing matrix counts as zero.` : null,
      kind === "checkpoints" && total.cosine > 0.99 ? "The checkpoints are nearly equal: eckart analyze B --base A shows their difference." : null,
    ].filter(Boolean);
    this.node = el("div", { class: "view" },
      intro("Comparison", `Cosine over all matrices: ${digits(total.cosine)}`, `A: ${a}, B: ${b}${base ? `, base: ${base}` : ""} (${COMPARED[kind]})`,
        facts([["‖A‖", digits(total.norm_a, 4), ""], ["‖B‖", digits(total.norm_b, 4), ""], ["‖A − B‖", digits(total.norm_difference, 4), ""],
          ["Matrices", whole(matrices.length), "in both"]]),
        ...notes.map((note) => el("p", { class: "soft help" }, note))),
      el("section", { class: "card", "aria-label": "Map of the comparison" },
        el("div", { class: "card-head" }, el("h2", {}, "Layers × modules"),
          select("Colour", Object.entries(QUANTITIES), this.quantity, (key) => { this.quantity = key; this.paint(); })),
        scrolled(el("div", { class: "map-scroll" }, this.map.node)), this.key,
        el("p", { class: "soft help" }, "φ is the share of the leading directions that A and B have in common; 1 is all of them.")),
      el("section", { class: "card", "aria-label": "Matrices compared" }, el("h2", {}, "All matrices"), table.node));
    onTheme(() => this.paint());
  }

  start() {
    if (this.map.cells.length) this.map.select(this.map.cells[0]);
    this.paint();
  }

  /** The quantity of a matrix; null where it is undefined. */
  value(i, quantity = this.quantity) {
    const entry = this.comparison.matrices[i];
    return quantity === "cosine" ? entry.cosine : entry[quantity]?.phi ?? null;
  }

  paint() {
    const { kinds, layers } = this.comparison;
    const label = QUANTITIES[this.quantity];
    const ofCell = (cell) => median(cell.items.map((i) => this.value(i)).filter((number) => number !== null));
    const scale = new Scale(this.map.cells.map(ofCell), { fromZero: false });
    this.map.paint(ofCell, scale, (cell, number) => ({
      short: number === null ? "–" : inCell(number),
      long: `${kinds[cell.row]}, layer ${layers[cell.column] ?? "–"}: ${label} ${digits(number)}`,
    }));
    fill(this.key, legend(scale, label, digits));
  }

  columns() {
    const { matrices } = this.comparison;
    const column = (key, label, value, text, numeric = true) => ({ key, label, value, text: text ?? ((i) => digits(value(i))), numeric });
    const shared = (side, label) => [
      column(side, label, (i) => this.value(i, side)),
      column(`${side}-chance`, "by chance", (i) => matrices[i][side]?.chance ?? null),
    ];
    const intruders = matrices.some((matrix) => matrix.intruders)
      ? [0, 1].map((side) => column(`intruders-${side}`, `Intruders ${"AB"[side]}`, (i) => matrices[i].intruders?.[side] ?? null)) : [];
    return [
      column("name", "Matrix", (i) => matrices[i].name, (i) => matrices[i].name, false),
      column("shape", "Shape", (i) => matrices[i].shape[0] * matrices[i].shape[1], (i) => shape(matrices[i].shape)),
      column("norm_a", "‖A‖", (i) => matrices[i].norm_a), column("norm_b", "‖B‖", (i) => matrices[i].norm_b),
      column("cosine", "Cosine", (i) => matrices[i].cosine),
      ...shared("outputs", "φ of outputs"), ...shared("inputs", "φ of inputs"), ...intruders,
    ];
  }
}
