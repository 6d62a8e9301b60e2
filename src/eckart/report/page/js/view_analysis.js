// The ranks tab: one analysis, the choice of ranks, the map, one matrix and the table, all for the same choice.

import { Chooser } from "./choice.js";
import { Controls } from "./controls.js";
import { el, fill, onceAFrame, select } from "./dom.js";
import { bounded, count, digits, median, percent, shape, upper, whole } from "./format.js";
import { HeatMap, legend } from "./heatmap.js";
import { cellsOf, scrolled } from "./parts.js";
import { Scale } from "./scale.js";
import { Spectrum } from "./spectrum.js";
import { DataTable } from "./table.js";
import { onTheme } from "./theme.js";
import { Totals } from "./totals.js";
import { rankWords, SpectrumView } from "./view_spectrum.js";

const WHAT = { weights: "weights", delta: "update", adapter: "adapter" };

/** The spectra of an analysis, created once for all of its views. */
export function spectraOf(analysis, numbers) {
  analysis.spectra ??= analysis.matrices.map((matrix) => new Spectrum(matrix.spectrum, matrix.shape, numbers));
  return analysis.spectra;
}

export class AnalysisView {
  constructor(analysis, numbers) {
    this.analysis = analysis;
    this.spectra = spectraOf(analysis, numbers);
    this.chooser = new Chooser(analysis, this.spectra);
    this.metric = "rank";
    this.controls = new Controls(this.chooser, onceAFrame(() => this.update()));
    this.totals = new Totals(analysis);
    this.map = new HeatMap({ rows: analysis.kinds, columns: analysis.layers }, cellsOf(analysis.matrices, analysis.layers), (cell) => this.selected(cell));
    this.spectrum = new SpectrumView(analysis, this.spectra);
    this.table = new DataTable("matrices", this.inOrder(), this.columns(), (row) => this.reveal(row));
    this.key = el("div", {});
    this.node = el("div", { class: "view" }, this.head(),
      el("div", { class: "choose" }, this.controls.node, this.totals.node),
      this.mapCard(), this.spectrum.node,
      el("section", { class: "card", "aria-label": "All matrices" }, el("h2", {}, "All matrices"), this.table.node));
    onTheme(() => this.paint());
  }

  /** Called when the tab is first visible. */
  start() {
    const first = this.map.cells.find((cell) => this.controls.kinds.has(cell.row)) ?? this.map.cells[0];
    this.update();
    if (first) {
      this.map.select(first);
      this.spectrum.show(first.items, first.items[0]);
    }
  }

  head() {
    const { kind, source, base, finding, matrices, params, thinned, exponent } = this.analysis;
    const facts = [`${whole(matrices.length)} matrices`, `${count(params)} parameters`];
    const notes = [];
    if (exponent) notes.push(`Norms and singular values on this page are in units of 2^${exponent}: their squares would leave the range of numbers.`);
    if (thinned.matrices) {
      notes.push(`To keep this page small, ${whole(thinned.matrices)} spectra are thinned: it holds their leading ${whole(thinned.values)} singular values, and beyond them what remains at chosen ranks. Every number at a stop of the slider is exact.`);
    }
    if (thinned.partial) {
      notes.push(`For ${whole(thinned.partial)} large matrices the analysis computed the leading singular values and certified limits for the rest; eckart analyze --full computes all.`);
    }
    return el("div", { class: "intro" },
      el("p", { class: "kicker" }, `Rank of the ${WHAT[kind]}`),
      el("h2", { class: "finding" }, finding),
      el("p", { class: "soft" }, el("span", { class: "name" }, base === null ? source : `${source} − ${base}`), ` · ${facts.join(" · ")}`),
      ...notes.map((note) => el("p", { class: "soft help" }, note)));
  }

  /** Matrices layer by layer, in the order of computation. */
  inOrder() {
    return [...this.map.cells].sort((a, b) => a.column - b.column || a.row - b.row).flatMap((cell) => cell.items);
  }

  metrics() {
    const { matrices } = this.analysis;
    const rank = (i) => this.result.ranks[i];
    const all = {
      rank: ["Rank (from the controls above)", (i) => rank(i), whole],
      error: ["Error at this rank", (i) => (rank(i) === null ? null : this.spectra[i].error(rank(i))), (share) => percent(share)],
      stable: ["Stable rank", (i) => upper(matrices[i].stable_rank), (number) => digits(number)],
      norm: ["Norm", (i) => this.spectra[i].fro, (number) => digits(number)],
    };
    if (matrices.some((matrix) => matrix.noise)) all.signal = ["Directions above the noise", (i) => matrices[i].noise?.signal_rank ?? null, whole];
    return all;
  }

  mapCard() {
    this.result = this.chooser.choose(this.controls.choice);
    const options = Object.entries(this.metrics()).map(([key, [label]]) => [key, label]);
    return el("section", { class: "card", "aria-label": "Map of the matrices" },
      el("div", { class: "card-head" }, el("h2", {}, "Layers × modules"),
        select("Colour", options, this.metric, (metric) => { this.metric = metric; this.paint(); })),
      scrolled(el("div", { class: "map-scroll" }, this.map.node)), this.key,
      el("p", { class: "soft help" }, "Click a cell, or move with the arrow keys, to see its spectrum below."));
  }

  columns() {
    const { matrices, kinds } = this.analysis;
    const rank = (i) => this.result.ranks[i];
    const error = (i) => (rank(i) === null ? null : this.spectra[i].error(rank(i)));
    const needed = matrices.map((_, i) => this.spectra[i].rankForEnergy(0.9));
    const column = (key, label, value, text, numeric = true) => ({ key, label, value, text, numeric });
    return [
      column("name", "Matrix", (i) => matrices[i].name, (i) => matrices[i].name, false),
      column("kind", "Kind", (i) => matrices[i].kind, (i) => kinds[matrices[i].kind], false),
      column("layer", "Layer", (i) => matrices[i].layer, (i) => matrices[i].layer ?? "–"),
      column("shape", "Shape", (i) => matrices[i].shape[0] * matrices[i].shape[1], (i) => shape(matrices[i].shape)),
      column("norm", "Norm", (i) => this.spectra[i].fro, (i) => digits(this.spectra[i].fro)),
      column("stable", "Stable rank", (i) => upper(matrices[i].stable_rank), (i) => bounded(matrices[i].stable_rank)),
      column("needed", "90% energy", (i) => needed[i]?.[1] ?? null, (i) => rankWords(needed[i])),
      ...(matrices.some((matrix) => matrix.noise) ? [column("signal", "Above noise", (i) => matrices[i].noise?.signal_rank ?? null, (i) => (matrices[i].noise ? whole(matrices[i].noise.signal_rank) : "–"))] : []),
      column("rank", "Chosen rank", rank, (i) => (rank(i) === null ? "–" : whole(rank(i)))),
      column("error", "Error", error, (i) => percent(error(i))),
    ];
  }

  update() {
    const { choice } = this.controls;
    this.result = this.chooser.choose(choice);
    this.totals.show(choice, this.result);
    this.paint();
    this.spectrum.mark(this.result.ranks);
    this.table.render();
  }

  paint() {
    const [label, value, text] = this.metrics()[this.metric];
    const ofCell = (cell) => median(cell.items.map(value).filter((number) => number !== null));
    const scale = new Scale(this.map.cells.map(ofCell));
    this.map.paint(ofCell, scale, (cell, number) => this.words(cell, number, label, text));
    const several = this.map.cells.some((cell) => cell.items.length > 1) ? ", median of the matrices in a cell" : "";
    fill(this.key, legend(scale, label + several, text));
  }

  words(cell, number, label, text) {
    const { kinds, layers } = this.analysis;
    const layer = layers[cell.column] === null ? "outside the layers" : `layer ${layers[cell.column]}`;
    const shown = number === null ? "not chosen" : text(number);
    return { short: number === null ? "·" : short(number, this.metric), long: `${kinds[cell.row]}, ${layer}: ${label.toLowerCase()} ${shown}` };
  }

  selected(cell) {
    this.spectrum.show(cell.items, cell.items[0]);
  }

  /** Shows the matrix of a row in the map and its spectrum. */
  reveal(row) {
    const cell = this.map.cells.find(({ items }) => items.includes(row));
    this.map.select(cell);
    this.spectrum.show(cell.items, row);
    this.spectrum.node.scrollIntoView({ behavior: "smooth", block: "start" });
  }
}

/** A number as it fits in a cell. */
function short(number, metric) {
  if (metric === "error") return `${Math.round(100 * number)}`;
  if (metric === "rank" || metric === "signal") return `${Math.round(number)}`;
  return number >= 100 ? `${Math.round(number)}` : digits(number, 2);
}
