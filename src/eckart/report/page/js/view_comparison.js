// The comparison tab: two analyses matrix by matrix, as a map of ratios, two overlaid spectra, and a table.

import { chart, logTicks, plain, series } from "./chart.js";
import { el, fill, select } from "./dom.js";
import { digits, inCell, median, upper, whole } from "./format.js";
import { HeatMap, legend } from "./heatmap.js";
import { cellsOf, intro, scrolled } from "./parts.js";
import { Scale } from "./scale.js";
import { DataTable } from "./table.js";
import { onTheme } from "./theme.js";
import { spectraOf } from "./view_analysis.js";
import { drawable, rankWords } from "./view_spectrum.js";

const QUANTITIES = { needed: "rank for 90% of the energy", stable: "stable rank", norm: "norm" };

export class ComparisonView {
  constructor(analyses, numbers) {
    this.analyses = analyses;
    this.numbers = numbers;
    this.sides = [0, 1];
    this.quantity = "needed";
    this.node = el("div", { class: "view" });
    onTheme(() => this.paint());
  }

  start() {
    const side = (place, label) => select(label, this.analyses.map((one, i) => [i, one.title]), this.sides[place], (i) => {
      this.sides[place] = Number(i);
      this.start();
    });
    this.pair();
    this.holder = el("div", { class: "map-scroll" });
    this.key = el("div", {});
    this.name = el("p", { class: "name" });
    this.plot = el("div", { class: "chart tall" });
    const picks = el("div", { class: "options" }, side(0, "A"), side(1, "B"));
    if (!this.both.length) {
      fill(this.node, intro("Comparison", "The two analyses have no matrix in common", null), el("section", { class: "card" }, picks));
      return;
    }
    const [a, b] = this.sides.map((i) => this.analyses[i]);
    this.map = new HeatMap({ rows: a.kinds, columns: a.layers }, cellsOf(this.both, a.layers), (cell) => this.selected(cell.items[0]));
    this.table = new DataTable("matrices", this.map.cells.flatMap((cell) => cell.items), this.columns(), (row) => this.selected(row));
    this.table.render();
    fill(this.holder, this.map.node);
    fill(this.node, intro("Comparison", this.finding(), `A: ${a.title}, B: ${b.title}`),
      el("section", { class: "card", "aria-label": "Map of the comparison" },
        el("div", { class: "card-head" }, el("h2", {}, "B over A"), picks,
          select("Compare", Object.entries(QUANTITIES), this.quantity, (key) => { this.quantity = key; this.start(); })),
        scrolled(this.holder), this.key),
      el("section", { class: "card", "aria-label": "Two spectra" }, el("h2", {}, "Spectra"), this.name, this.plot),
      el("section", { class: "card", "aria-label": "Matrices compared" }, el("h2", {}, "All matrices"), this.table.node));
    this.paint();
    this.map.select(this.map.cells[0]);
    this.selected(this.map.cells[0].items[0]);
  }

  /** The matrices that both have, by name. */
  pair() {
    const [a, b] = this.sides.map((i) => this.analyses[i]);
    const [left, right] = [a, b].map((one) => spectraOf(one, this.numbers));
    const place = new Map(b.matrices.map((matrix, i) => [matrix.name, i]));
    this.both = a.matrices.flatMap((matrix, i) => (place.has(matrix.name)
      ? [{ ...matrix, a: left[i], b: right[place.get(matrix.name)], other: b.matrices[place.get(matrix.name)] }] : []));
  }

  values(row) {
    const pair = this.both[row];
    if (this.quantity === "norm") return [pair.a.fro, pair.b.fro];
    if (this.quantity === "stable") return [upper(pair.stable_rank), upper(pair.other.stable_rank)];
    return [pair.a, pair.b].map((spectrum) => spectrum.rankForEnergy(0.9)?.[1] ?? null);
  }

  ratio(row) {
    const [a, b] = this.values(row);
    return a && b !== null ? b / a : null;
  }

  finding() {
    const ratios = this.both.map((_, row) => this.ratio(row)).filter((ratio) => ratio !== null);
    const middle = median(ratios);
    if (middle === null) return "Nothing to compare";
    const [a, b] = this.sides.map((i) => this.analyses[i].title);
    return `${b} has ${digits(middle)} × the ${QUANTITIES[this.quantity]} of ${a}, median over ${whole(ratios.length)} matrices`;
  }

  columns() {
    const column = (key, label, value, text, numeric = true) => ({ key, label, value, text, numeric });
    const both = this.both;
    const needed = both.map(({ a, b }) => [a, b].map((spectrum) => spectrum.rankForEnergy(0.9)));
    return [
      column("name", "Matrix", (i) => both[i].name, (i) => both[i].name, false),
      ...[["A", "a"], ["B", "b"]].flatMap(([label, side], place) => [
        column(`norm-${side}`, `Norm ${label}`, (i) => both[i][side].fro, (i) => digits(both[i][side].fro)),
        column(`stable-${side}`, `Stable rank ${label}`, (i) => upper((place ? both[i].other : both[i]).stable_rank), (i) => digits(upper((place ? both[i].other : both[i]).stable_rank))),
        column(`needed-${side}`, `90% energy ${label}`, (i) => needed[i][place]?.[1] ?? null, (i) => rankWords(needed[i][place])),
      ]),
    ];
  }

  paint() {
    if (!this.map) return;
    const ofCell = (cell) => median(cell.items.map((i) => this.ratio(i)).filter((ratio) => ratio !== null));
    const scale = new Scale(this.map.cells.map(ofCell), { fromZero: false });
    this.map.paint(ofCell, scale, (cell, number) => ({
      short: number === null ? "·" : inCell(number),
      long: `${this.both[cell.items[0]].name}: ${QUANTITIES[this.quantity]} of B is ${digits(number)} × that of A`,
    }));
    fill(this.key, legend(scale, `${QUANTITIES[this.quantity]}, B over A`, digits));
  }

  selected(row) {
    const { name, a, b } = this.both[row];
    fill(this.name, name);
    const titles = this.sides.map((i, place) => `${place ? "B" : "A"}: ${plain(this.analyses[i].title)}`);
    chart(this.plot, `Singular values of ${name} in both`, () => ({
      traces: [a, b].map((spectrum, place) => ({
        x: Array.from(spectrum.values, (_, i) => i + 1), y: drawable(spectrum), name: titles[place], mode: "lines",
        line: { color: series(place), width: 2, dash: place ? "dash" : "solid" }, hovertemplate: "index %{x}<br>σ %{y:.4g}<extra>%{fullData.name}</extra>",
      })),
      layout: { xaxis: { title: "index i" }, yaxis: { title: "singular value σᵢ", type: "log", ...logTicks([a, b].flatMap(drawable)) } },
    }));
  }
}
