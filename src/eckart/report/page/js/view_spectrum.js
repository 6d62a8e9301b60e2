// One matrix: its singular values, and what each rank keeps, with the noise edge, the energy and the chosen rank marked.

import { chart, logTicks, markX, markY, moved, series } from "./chart.js";
import { el, fill, segmented, select } from "./dom.js";
import { bounded, digits, percent, shape, upper, whole } from "./format.js";
import { color } from "./theme.js";

const LEAST_DRAWN = 1e-7; // of the largest value
const TOP = 1.03; // of the axis of shares
const LABEL_WIDTH = 0.25; // of a chart, at most
const HEIGHTS = Array.from({ length: 19 }, (_, i) => 0.95 - 0.05 * i); // of labels, from the top
const EDGES = { additive: "noise edge", "dead-zone": "noise edge", bulk: "edge of the random bulk" };

export class SpectrumView {
  constructor(analysis, spectra) {
    this.analysis = analysis;
    this.spectra = spectra;
    this.axes = { x: "linear", y: "log" };
    this.title = el("h3", { class: "name" });
    this.which = el("div", {});
    this.caption = el("figcaption", {});
    this.left = el("div", { class: "chart" });
    this.right = el("div", { class: "chart" });
    this.lines = el("p", { class: "soft help" });
    this.facts = el("dl", { class: "facts" });
    this.node = el("section", { class: "card spectrum", "aria-label": "Spectrum of one matrix" },
      el("div", { class: "card-head" }, el("div", {}, el("h2", {}, "Spectrum"), this.title), this.which, this.options()),
      el("div", { class: "pair" },
        el("figure", {}, this.caption, this.left),
        el("figure", {}, el("figcaption", {}, "What a rank keeps and misses"), this.right)),
      this.lines, this.facts);
  }

  options() {
    const axis = (name, label) => segmented(label, [["linear", "linear"], ["log", "log"]], this.axes[name], (kind) => {
      this.axes[name] = kind;
      this.draw();
    });
    return el("div", { class: "options" }, axis("x", "Index"), axis("y", "Values"));
  }

  /** Shows one of the matrices of a cell. */
  show(items, item) {
    this.item = item;
    const { matrices } = this.analysis;
    fill(this.title, matrices[item].name);
    fill(this.which, items.length > 1
      ? select("Matrix", items.map((i) => [i, matrices[i].name]), item, (value) => this.show(items, Number(value))) : null);
    this.draw();
  }

  /** Moves the marks to the ranks of another choice. */
  mark(ranks) {
    this.ranks = ranks;
    if (this.item === undefined) return;
    fill(this.facts, ...this.numbers());
    moved(this.left, ...this.marks("left"));
    moved(this.right, ...this.marks("right"));
  }

  numbers() {
    const matrix = this.analysis.matrices[this.item];
    const spectrum = this.spectra[this.item];
    const rank = this.ranks?.[this.item] ?? null;
    const facts = [
      ["Shape", shape(matrix.shape)],
      ["Norm", digits(matrix.spectrum.fro, 4)],
      ["Largest σ", bounded(matrix.spectral_norm)],
      ["Stable rank", bounded(matrix.stable_rank)],
      ["Effective rank", bounded(matrix.effective_rank)],
      ["Rank for 90% of energy", rankWords(spectrum.rankForEnergy(0.9))],
      ["Rank for error < 10%", rankWords(spectrum.rankForError(0.1))],
    ];
    if (matrix.noise) facts.push(["Above the noise", whole(matrix.noise.signal_rank)]);
    if (rank !== null) {
      facts.push(["Chosen rank", whole(rank)], ["Error", percent(spectrum.error(rank))],
        ["Energy kept", percent(spectrum.energy(rank))], ["Parameters", whole(rank * (matrix.shape[0] + matrix.shape[1]))]);
    }
    return facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  }

  draw() {
    const matrix = this.analysis.matrices[this.item];
    fill(this.facts, ...this.numbers());
    const about = `${matrix.name}, ${shape(matrix.shape)}`;
    const stable = digits(upper(matrix.stable_rank));
    const { thinned, tail, values } = this.spectra[this.item];
    const edge = matrix.noise && EDGES[matrix.noise.regime];
    fill(this.lines, `Vertical lines: solid at the chosen rank, dotted at 90% of the energy.${edge ? ` Dashed across: the ${edge}; what is below it, noise explains.` : ""}`);
    fill(this.caption, "Singular values", thinned ? "; dotted: means between the ranks on this page" : "",
      tail ? `: the leading ${whole(values.length)}; the others were not computed` : "");
    chart(this.left, `Singular values of ${about}; stable rank ${stable}`, () => this.values());
    chart(this.right, `Energy kept and relative error over the rank, of ${about}`, () => this.curves());
  }

  /** Singular values; those not on the page as root mean squares between kept ranks. */
  values() {
    const spectrum = this.spectra[this.item];
    const ranks = Array.from(spectrum.values, (_, i) => i + 1);
    const traces = [line(ranks, drawable(spectrum), 0, "σ", "index %{x}<br>σ %{y:.4g}<extra></extra>")];
    if (spectrum.thinned) {
      const [x, y] = between(spectrum);
      traces.push({ ...line(x, y, 0, "thinned", "about index %{x:.0f}<br>σ about %{y:.4g}<extra></extra>"), line: { color: series(0), width: 1.5, dash: "dot" } });
    }
    const [shapes, annotations] = this.marks("left");
    return { traces, layout: {
      xaxis: { title: "index i", type: this.axes.x, range: span(this.axes.x, spectrum) },
      yaxis: { title: "singular value σᵢ", type: this.axes.y, range: this.valueRange(), ...(this.axes.y === "log" ? logTicks(drawable(spectrum)) : {}) },
      showlegend: false, shapes, annotations,
    } };
  }

  curves() {
    const spectrum = this.spectra[this.item];
    const ranks = [0, ...Array.from(spectrum.values, (_, i) => i + 1), ...spectrum.keptRanks];
    const shown = this.axes.x === "log" ? ranks.slice(1) : ranks;
    const traces = [
      line(shown, shown.map((rank) => spectrum.energy(rank)), 2, "energy kept", "rank %{x}<br>energy kept %{y:.1%}<extra></extra>"),
      { ...line(shown, shown.map((rank) => spectrum.error(rank)), 1, "relative error", "rank %{x}<br>error %{y:.1%}<extra></extra>"), line: { color: series(1), width: 2, dash: "dash" } },
    ];
    const [shapes, annotations] = this.marks("right");
    return { traces, layout: {
      xaxis: { title: "rank r", type: this.axes.x, range: span(this.axes.x, spectrum) },
      yaxis: { title: "", range: [0, TOP], tickformat: ".0%" }, shapes, annotations,
    } };
  }

  /** [shapes, annotations]: noise edge, the rank of 90 % energy, and the chosen rank. */
  marks(side) {
    const { noise } = this.analysis.matrices[this.item];
    const spectrum = this.spectra[this.item];
    const at = (rank) => (this.axes.x === "log" ? Math.log10(Math.max(rank, 1)) : rank);
    const shapes = [];
    const annotations = [];
    const note = (text, place, ink) => annotations.push({ text, showarrow: false, font: { size: 11, color: ink }, ...place });
    const rank = this.ranks?.[this.item] ?? null;
    const energy = spectrum.rankForEnergy(0.9);
    const [start, end] = span(this.axes.x, spectrum);
    const taken = [];
    const label = (text, r, ink) => {
      const place = (at(r) - start) / (end - start);
      const xanchor = place > 0.6 ? "right" : "left";
      const y = this.clearHeight(side, xanchor === "left" ? [place, place + LABEL_WIDTH] : [place - LABEL_WIDTH, place], taken);
      taken.push(y);
      note(text, { x: at(r), y, yref: "paper", yanchor: "middle", xanchor, xshift: xanchor === "left" ? 3 : -3 }, ink);
    };
    if (energy) {
      shapes.push(markX(Math.max(energy[1], 1), color("--soft"), "dot"));
      label("90% energy", Math.max(energy[1], 1), color("--soft"));
    }
    if (rank) {
      shapes.push(markX(rank, color("--accent")));
      label(`rank ${rank}`, rank, color("--accent"));
    }
    if (noise && noise.edge > 0 && side === "left") {
      shapes.push(markY(noise.edge, color("--warn")));
      note(EDGES[noise.regime], { xref: "paper", x: 1, xanchor: "right", y: this.axes.y === "log" ? Math.log10(noise.edge) : noise.edge, yanchor: "bottom" }, color("--warn"));
    }
    return [shapes, annotations];
  }

  /** The range of the axis of singular values, in the form that plotly.js wants: logarithms on a logarithmic one. */
  valueRange() {
    const values = drawable(this.spectra[this.item]).filter((value) => value > 0);
    if (!values.length) return [0, 1];
    if (this.axes.y === "linear") return [0, 1.05 * values[0]];
    const [low, high] = [Math.log10(values.at(-1)), Math.log10(values[0])];
    return [low - 0.05 * (high - low) - 0.02, high + 0.05 * (high - low) + 0.02];
  }

  /** Heights of the curves of a chart at a rank, as shares of the axis. */
  heights(side, rank) {
    const spectrum = this.spectra[this.item];
    if (side === "right") return [spectrum.energy(rank) / TOP, spectrum.error(rank) / TOP];
    const [low, high] = this.valueRange();
    const value = drawable(spectrum)[Math.max(rank, 1) - 1];
    return value ? [((this.axes.y === "log" ? Math.log10(value) : value) - low) / (high - low)] : [];
  }

  /** A height for a label over a span of the axis of ranks, as far up as it is clear of the curves and of other labels. */
  clearHeight(side, [from, to], taken) {
    const [start, end] = span(this.axes.x, this.spectra[this.item]);
    const ranks = Array.from({ length: 13 }, (_, i) => start + (end - start) * (from + (to - from) * (i / 12)))
      .map((x) => Math.max(0, Math.round(this.axes.x === "log" ? 10 ** x : x)));
    const curves = ranks.map((rank) => this.heights(side, rank));
    const clear = (y) => taken.every((other) => Math.abs(other - y) > 0.08)
      && (curves[0] ?? []).every((_, line) => {
        const along = curves.flatMap((heights) => (line in heights ? [heights[line]] : []));
        return y > Math.max(...along) + 0.05 || y < Math.min(...along) - 0.05;
      });
    return HEIGHTS.find(clear) ?? HEIGHTS[taken.length];
  }
}

export const rankWords = (limits) => (limits === null ? "–" : limits[0] === limits[1] ? whole(limits[1]) : `${whole(limits[0])}–${whole(limits[1])}`);

function line(x, y, place, name, hovertemplate) {
  return { x, y, name, mode: x.length > 1 ? "lines" : "markers", line: { color: series(place), width: 2 }, hovertemplate };
}

/** Singular values, without what is rounding of the decomposition and would stretch a logarithmic axis. */
export const drawable = ({ values }) => Array.from(values, (value) => (value > LEAST_DRAWN * values[0] ? value : null));

/** The axis from 1 (or 0) to the highest rank. */
function span(kind, spectrum) {
  const last = Math.max(spectrum.tail ? spectrum.values.length : spectrum.maxRank, 2);
  return kind === "log" ? [0, Math.log10(last)] : [0, last * 1.01];
}

/** Index and root mean square of the singular values between kept ranks. */
function between(spectrum) {
  const x = [];
  const y = [];
  let before = spectrum.values.length;
  let energy = spectrum.known[before];
  spectrum.keptRanks.forEach((rank, i) => {
    const next = spectrum.keptEnergies[i];
    x.push((before + 1 + rank) / 2);
    y.push(Math.sqrt(Math.max(energy - next, 0) / (rank - before)) || null);
    [before, energy] = [rank, next];
  });
  return [x, y];
}
