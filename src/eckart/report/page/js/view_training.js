// The training tab: its result and settings, its losses, how the updates grew, and their spectra as an animation.

import { chart, DASHES, logTicks, plain, series } from "./chart.js";
import { el, fill, onceAFrame, select, unique } from "./dom.js";
import { bytes, count, digits, median, percent, seconds, whole } from "./format.js";
import { HeatMap, legend } from "./heatmap.js";
import { Scale } from "./scale.js";
import { color, onTheme } from "./theme.js";
import { cellsOf, facts, intro, scrolled } from "./parts.js";

const NAMES = {
  relative_norm: "‖ΔW‖ / ‖W‖", norm: "‖ΔW‖", A_norm: "‖A‖", B_norm: "‖B‖",
  effective_rank: "effective rank of ΔW", stable_rank: "stable rank of ΔW",
};
const LOGGED = { learning_rate: "Learning rate", gradient_norm: "Gradient norm" };
const FRAME_MS = 220;

export class TrainingView {
  constructor(training, numbers) {
    this.training = training;
    this.numbers = numbers;
    this.quantity = "relative_norm";
    this.small = Object.fromEntries(Object.keys(LOGGED).filter((key) => training.log?.[key]?.[0].length)
      .map((key) => [key, el("div", { class: "chart small" })]));
    this.node = el("div", { class: "view" }, this.head(), ...this.settings(), this.losses());
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
    for (const [key, node] of Object.entries(this.small)) chart(node, `${LOGGED[key]} over the steps`, () => this.smallLines(key));
    if (!this.map) return;
    this.map.select(this.map.cells[0]);
    this.item = this.map.cells[0].items[0];
    this.showGrowth();
    this.show();
  }

  finding() {
    const { facts: result, log } = this.training;
    if (result) {
      const verb = result.heldout_loss_after < result.heldout_loss_before ? "fell" : "rose";
      return `Held-out loss ${verb} from ${result.heldout_loss_before.toFixed(4)} to ${result.heldout_loss_after.toFixed(4)}`;
    }
    const [, values] = log.loss;
    return values.length ? `Training loss went from ${digits(values[0])} to ${digits(values.at(-1))}` : "No loss was recorded";
  }

  head() {
    const { facts: result, model, title } = this.training;
    return intro("Training", this.finding(), model ?? title, result ? facts([
      ["Held-out loss", `${result.heldout_loss_before.toFixed(4)} → ${result.heldout_loss_after.toFixed(4)}`,
        `nats per token, over ${whole(result.heldout_tokens)} tokens`],
      ["Trained", count(result.trainable_params), `${percent(result.trainable_params / result.total_params)} of ${count(result.total_params)} parameters`],
      ["Steps", whole(result.steps), `in ${seconds(result.seconds)}`],
      ["Peak memory", bytes(result.peak_bytes), ""],
    ]) : null);
  }

  /** The settings and the data that `train.json` names. */
  settings() {
    const { settings, data } = this.training;
    return [["Settings", settings], ["Data", data]].filter(([, rows]) => rows.length).map(([title, rows]) =>
      el("section", { class: "card", "aria-label": title }, el("h2", {}, title),
        el("dl", { class: "facts plain" }, ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))))));
  }

  losses() {
    this.lossChart = el("div", { class: "chart" });
    const pair = Object.keys(this.small).length ? el("div", { class: "pair" }, ...Object.entries(this.small).map(([key, node]) =>
      el("figure", {}, el("figcaption", {}, LOGGED[key]), node))) : null;
    return el("section", { class: "card", "aria-label": "Loss" },
      el("div", { class: "card-head" }, el("h2", {}, "Loss"), el("span", { class: "soft" }, "nats per token")), this.lossChart, pair);
  }

  lossLines() {
    const [steps, values] = this.training.log.loss;
    const half = this.training.neighbors; // as in loss.png
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
        x: heldSteps, y: held, mode: "markers+text", name: "held-out", marker: { size: 10, symbol: "diamond", color: series(1) },
        text: held.map((value) => value.toFixed(3)), textposition: held.map((_, i) => (i === held.length - 1 ? "top left" : "top right")),
        textfont: { color: series(1) }, cliponaxis: false, hovertemplate: "step %{x}<br>held-out %{y:.4f}<extra></extra>",
      });
    }
    return { traces, layout: { xaxis: { title: "step" }, yaxis: { title: "loss" } } };
  }

  /** Learning rate or gradient norm over the steps. */
  smallLines(key) {
    const [steps, values] = this.training.log[key];
    const positive = values.filter((value) => value > 0);
    const log = key === "gradient_norm" && Math.max(...positive) > 4 * Math.min(...positive);
    return {
      traces: [{ x: steps, y: values, mode: values.length > 1 ? "lines" : "markers", line: { color: series(0), width: 2 }, hovertemplate: "step %{x}<br>%{y:.4g}<extra></extra>" }],
      layout: { xaxis: { title: "step" }, yaxis: { title: "", ...(log ? { type: "log", ...logTicks(values) } : { rangemode: "tozero", exponentformat: "power" }) } },
    };
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
        const ofKind = layers.filter((layer) => layer.kind === row);
        return {
          x: steps, y: steps.map((_, place) => median(ofKind.map((layer) => this.value(layer, this.quantity, place)).filter((value) => value !== null))),
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
    this.step = el("output", { for: id, class: "slider-value" });
    this.shown = onceAFrame(() => this.show());
    this.title = el("p", { class: "name" });
    this.undefinedNote = el("p", { class: "soft help", role: "status" });
    const thinned = frames.length < steps.length
      ? el("p", { class: "soft help" }, `To keep this page small, it has the spectra of ${frames.length} of ${steps.length} recorded steps.`) : null;
    return el("section", { class: "card", "aria-label": "Updates step by step" },
      el("div", { class: "card-head" }, el("h2", {}, "Step by step"), this.play),
      el("div", { class: "slider" }, el("div", { class: "slider-head" }, el("label", { for: id }, "After step"), this.step), this.slider), thinned,
      scrolled(el("div", { class: "map-scroll" }, this.map.node)), this.key, this.undefinedNote,
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
    fill(this.step, whole(step));
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
      short: number === null ? "–" : digits(this.quantity === "relative_norm" ? 100 * number : number, 2),
      long: `${kinds[cell.row]}, layer ${stack[cell.column] ?? "–"}: ${NAMES[this.quantity]} ${words(number)}`,
    }));
    const none = this.map.cells.every((cell) => !ofCell(frames[this.frame])(cell));
    fill(this.undefinedNote, none ? `Every update is zero after step ${whole(steps[frames[this.frame]])}${frames[this.frame] === 0 ? ": lora_B starts at zero" : ""}.` : null);
    fill(this.key, legend(scale, `${NAMES[this.quantity]}; colours are scaled to the last step`, words));
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
