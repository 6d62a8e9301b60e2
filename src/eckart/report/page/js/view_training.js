// The training tab: what it came to, its losses, how the updates grew, and their spectra step by step as an animation.

import { chart, DASHES, plain, series } from "./chart.js";
import { el, fill, onceAFrame, select, unique } from "./dom.js";
import { bytes, count, digits, median, percent, seconds, whole } from "./format.js";
import { HeatMap, legend } from "./heatmap.js";
import { Scale } from "./scale.js";
import { color, onTheme } from "./theme.js";
import { cellsOf, facts, intro } from "./parts.js";

const NAMES = {
  relative_norm: "‖ΔW‖ / ‖W‖", norm: "‖ΔW‖", A_norm: "‖A‖", B_norm: "‖B‖",
  effective_rank: "effective rank of ΔW", stable_rank: "stable rank of ΔW",
};
const FRAME_MS = 220;

export class TrainingView {
  constructor(training, numbers) {
    this.training = training;
    this.numbers = numbers;
    this.quantity = "relative_norm";
    this.node = el("div", { class: "view" }, this.head(), this.losses());
    if (training.layers?.length && training.steps.length) {
      this.frame = training.frames.length - 1;
      this.growth = el("div", { class: "chart" });
      this.spectrum = el("div", { class: "chart" });
      this.key = el("div", {});
      this.map = new HeatMap({ rows: training.kinds, columns: training.stack }, cellsOf(training.layers, training.stack),
        (cell) => this.selected(cell.items[0]));
      this.node.append(this.grown(), this.animated());
      onTheme(() => this.paint());
    }
  }

  start() {
    chart(this.lossChart, this.finding(), () => this.lossLines());
    if (!this.map) return;
    this.map.select(this.map.cells[0]);
    this.item = this.map.cells[0].items[0];
    this.showGrowth();
    this.show();
  }

  finding() {
    const { facts: told, log } = this.training;
    if (told) {
      const verb = told.heldout_loss_after < told.heldout_loss_before ? "fell" : "rose";
      return `Held-out loss ${verb} from ${told.heldout_loss_before.toFixed(4)} to ${told.heldout_loss_after.toFixed(4)}`;
    }
    const [, values] = log.loss;
    return values.length ? `Training loss went from ${digits(values[0])} to ${digits(values.at(-1))}` : "No loss was told";
  }

  head() {
    const { facts: told, model, title } = this.training;
    return intro("Training", this.finding(), model ?? title, told ? facts([
      ["Held-out loss", `${told.heldout_loss_before.toFixed(4)} → ${told.heldout_loss_after.toFixed(4)}`,
        `nats a token, over ${whole(told.heldout_tokens)} tokens`],
      ["Trained", count(told.trainable_params), `${percent(told.trainable_params / told.total_params)} of ${count(told.total_params)} parameters`],
      ["Steps", whole(told.steps), `in ${seconds(told.seconds)}`],
      ["Peak memory", bytes(told.peak_bytes), ""],
    ]) : null);
  }

  losses() {
    this.lossChart = el("div", { class: "chart" });
    return el("section", { class: "card", "aria-label": "Loss" },
      el("div", { class: "card-head" }, el("h2", {}, "Loss"), el("span", { class: "soft" }, "nats per token")), this.lossChart);
  }

  lossLines() {
    const [steps, values] = this.training.log.loss;
    const half = Math.max(1, Math.round(0.03 * values.length));
    const smooth = values.map((_, i) => {
      const near = values.slice(Math.max(0, i - half), i + half + 1);
      return near.reduce((sum, value) => sum + value, 0) / near.length;
    });
    const traces = [
      { x: steps, y: values, mode: "markers", name: "each step", marker: { size: 5, color: series(0), opacity: 0.4 }, hovertemplate: "step %{x}<br>loss %{y:.4f}<extra></extra>" },
      { x: steps, y: smooth, mode: "lines", name: `mean of ${2 * half + 1} steps`, line: { color: series(0), width: 2.5 }, hoverinfo: "skip" },
    ];
    const [heldSteps, held] = this.training.log.heldout_loss ?? [[], []];
    if (held.length) {
      traces.push({
        x: heldSteps, y: held, mode: "markers+text", name: "held out", marker: { size: 10, symbol: "diamond", color: series(1) },
        text: held.map((value) => value.toFixed(3)), textposition: held.map((_, i) => (i === held.length - 1 ? "top left" : "top right")),
        textfont: { color: series(1) }, cliponaxis: false, hovertemplate: "step %{x}<br>held out %{y:.4f}<extra></extra>",
      });
    }
    return { traces, layout: { xaxis: { title: "step" }, yaxis: { title: "loss" } } };
  }

  grown() {
    const options = this.training.growth.map((key) => [key, NAMES[key]]);
    return el("section", { class: "card", "aria-label": "Growth of the updates" },
      el("div", { class: "card-head" }, el("h2", {}, "How the updates grow"),
        select("Show", options, this.quantity, (key) => { this.quantity = key; this.showGrowth(); this.show(); })),
      this.growth, el("p", { class: "soft help" }, "Each line is the median over the layers of one module kind."));
  }

  /** A quantity of a layer at a recorded step; null where it is undefined. */
  value(layer, quantity, place) {
    const { growth, steps } = this.training;
    const number = this.numbers[layer.at + growth.indexOf(quantity) * steps.length + place];
    return Number.isNaN(number) ? null : number;
  }

  showGrowth() {
    const { kinds, layers, steps } = this.training;
    chart(this.growth, `${NAMES[this.quantity]} over the steps, by module kind`, () => ({
      traces: kinds.map((kind, row) => {
        const own = layers.filter((layer) => layer.kind === row);
        return {
          x: steps, y: steps.map((_, place) => median(own.map((layer) => this.value(layer, this.quantity, place)).filter((value) => value !== null))),
          name: plain(kind), mode: "lines", line: { color: series(row), width: 2, dash: DASHES[Math.floor(row / 7) % 4] },
          hovertemplate: "step %{x}<br>%{y:.4g}<extra>%{fullData.name}</extra>",
        };
      }),
      layout: { xaxis: { title: "step" }, yaxis: { title: NAMES[this.quantity], rangemode: "tozero", tickformat: this.quantity === "relative_norm" ? ".2%" : "" } },
    }));
  }

  animated() {
    const id = unique("frame");
    const { frames, steps } = this.training;
    this.slider = el("input", { type: "range", id, min: 0, max: frames.length - 1, value: this.frame, "data-frames": true,
      input: () => { this.stop(); this.frame = Number(this.slider.value); this.shown(); } });
    this.play = el("button", { type: "button", click: () => (this.timer ? this.stop() : this.run()) }, "Play");
    this.told = el("output", { for: id, class: "slider-value" });
    this.shown = onceAFrame(() => this.show());
    this.title = el("p", { class: "name" });
    const thinned = frames.length < steps.length
      ? el("p", { class: "soft help" }, `To keep this page small, spectra are here for ${frames.length} of ${steps.length} recorded steps.`) : null;
    return el("section", { class: "card", "aria-label": "Updates step by step" },
      el("div", { class: "card-head" }, el("h2", {}, "Step by step"), this.play),
      el("div", { class: "slider" }, el("div", { class: "slider-head" }, el("label", { for: id }, "After step"), this.told), this.slider), thinned,
      el("div", { class: "map-scroll" }, this.map.node), this.key,
      el("h3", {}, "Spectrum of the update"), this.title, this.spectrum);
  }

  run() {
    if (this.frame >= this.training.frames.length - 1) this.frame = 0;
    this.show();
    this.timer = setInterval(() => {
      if (this.frame >= this.training.frames.length - 1 || !this.node.isConnected) return this.stop();
      this.frame += 1;
      this.show();
    }, FRAME_MS);
    fill(this.play, "Pause");
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    fill(this.play, "Play");
  }

  selected(item) {
    this.item = item;
    this.showSpectrum();
  }

  /** The map and the spectrum at the step of the slider. */
  show() {
    const { frames, steps } = this.training;
    const step = steps[frames[this.frame]];
    this.slider.value = this.frame;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    fill(this.told, whole(step));
    this.paint();
    this.showSpectrum();
  }

  paint() {
    if (!this.map) return;
    const { kinds, layers, stack, frames, steps } = this.training;
    const words = this.quantity === "relative_norm" ? percent : digits;
    const ofCell = (place) => (cell) => median(cell.items.map((i) => this.value(layers[i], this.quantity, place)).filter((value) => value !== null));
    const scale = new Scale(this.map.cells.map(ofCell(steps.length - 1)));
    this.map.paint(ofCell(frames[this.frame]), scale, (cell, number) => ({
      short: number === null ? "·" : digits(this.quantity === "relative_norm" ? 100 * number : number, 2),
      long: `${kinds[cell.row]}, layer ${stack[cell.column] ?? "–"}: ${NAMES[this.quantity]} ${words(number)}`,
    }));
    fill(this.key, legend(scale, `${NAMES[this.quantity]}; the colours are those of the last step`, words));
  }

  spectrumAt(layer, frame) {
    return this.numbers.subarray(layer.spectra + frame * layer.rank, layer.spectra + (frame + 1) * layer.rank);
  }

  showSpectrum() {
    const layer = this.training.layers[this.item];
    const last = this.spectrumAt(layer, this.training.frames.length - 1);
    fill(this.title, layer.name);
    const ranks = Array.from(last, (_, i) => i + 1);
    chart(this.spectrum, `Singular values of the update of ${layer.name}`, () => ({
      traces: [
        { x: ranks, y: [...last], name: "last step", mode: "lines+markers", line: { color: color("--edge"), width: 1.5, dash: "dot" }, marker: { size: 5 }, hoverinfo: "skip" },
        { x: ranks, y: [...this.spectrumAt(layer, this.frame)], name: "at this step", type: "bar", marker: { color: series(0) }, hovertemplate: "index %{x}<br>σ %{y:.4g}<extra></extra>" },
      ],
      layout: { xaxis: { title: "index i" }, yaxis: { title: "singular value σᵢ of ΔW", range: [0, 1.05 * Math.max(...last, 1e-30)] }, bargap: 0.25 },
    }));
  }
}
