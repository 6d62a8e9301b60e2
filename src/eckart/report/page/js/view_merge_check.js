// The tab of a merge check: its verdict, and how far each changed matrix is from the claim.

import { el } from "./dom.js";
import { digits, percent, shape, whole } from "./format.js";
import { facts, intro } from "./parts.js";
import { DataTable } from "./table.js";

const MOST_LISTED = 20;

export class MergeCheckView {
  constructor({ title, verdict, matrices, altered, faults, skipped, unchanged }) {
    this.matrices = matrices;
    const table = new DataTable("matrices", [...matrices.keys()], this.columns());
    table.render();
    const count = (word) => whole(matrices.filter((matrix) => matrix.verdict === word).length);
    const lists = [["Changed, but no adapter covers them", altered], ["Do not fit the base", faults], ["Not checked", skipped]];
    this.node = el("div", { class: "view" },
      intro("Merge check", verdict, title, facts([
        ["Changed matrices", whole(matrices.length), ""], ["Equal", count("equal"), "bit for bit"],
        ["Within rounding", count("rounding"), ""], ["Different", count("differs"), ""], ["Unchanged", whole(unchanged), "other tensors"],
      ])),
      el("section", { class: "card", "aria-label": "Matrices checked" }, el("h2", {}, "Changed matrices"), table.node),
      ...lists.filter(([, names]) => names.length).map(([heading, names]) => el("section", { class: "card" }, el("h2", {}, heading),
        el("ul", {}, ...names.slice(0, MOST_LISTED).map((name) => el("li", { class: "name" }, name))),
        names.length > MOST_LISTED ? el("p", { class: "soft" }, `and ${whole(names.length - MOST_LISTED)} more`) : null)));
  }

  start() {}

  columns() {
    const { matrices } = this;
    const column = (key, label, value, text, numeric = true) => ({ key, label, value, text: text ?? ((i) => digits(value(i))), numeric });
    const weight = (i) => matrices[i].weight && (matrices[i].weight.lower + matrices[i].weight.upper) / 2;
    return [
      column("name", "Matrix", (i) => matrices[i].name, (i) => matrices[i].name, false),
      column("shape", "Shape", (i) => matrices[i].shape.reduce((a, b) => a * b, 1), (i) => shape(matrices[i].shape)),
      column("verdict", "Verdict", (i) => matrices[i].verdict, (i) => matrices[i].verdict, false),
      column("ulps", "Off by, in ulp", (i) => matrices[i].ulps),
      column("error", "Error of the update", (i) => matrices[i].error, (i) => percent(matrices[i].error)),
      column("weight", "Fitting weight", weight),
    ];
  }
}
