// The sweep tab: what every rank on every target came to, and the sweet spot.

import { chart, DASHES, plain, series } from "./chart.js";
import { el } from "./dom.js";
import { bytes, count, percent, seconds, whole } from "./format.js";
import { intro } from "./parts.js";
import { DataTable } from "./table.js";
import { color } from "./theme.js";

export class SweepView {
  constructor(sweep) {
    this.sweep = sweep;
    this.plot = el("div", { class: "chart tall" });
    const table = new DataTable("settings", [...sweep.settings.keys()], this.columns());
    table.render();
    const failed = sweep.cells.filter((cell) => cell.loss === null).length;
    this.node = el("div", { class: "view" },
      intro("Sweep", this.finding(), sweep.model, el("p", { class: "soft help" }, this.certainty())),
      el("section", { class: "card", "aria-label": "Loss over parameters" },
        el("div", { class: "card-head" }, el("h2", {}, "Held-out loss over trained parameters"),
          el("span", { class: "soft" }, "nats per token; bars are standard errors over seeds")), this.plot),
      el("section", { class: "card", "aria-label": "All settings" }, el("h2", {}, "All settings"), table.node,
        failed ? el("p", { class: "help" }, `${failed} of ${sweep.cells.length} trainings failed; their settings are not shown.`) : null));
  }

  start() {
    chart(this.plot, this.finding(), () => this.lines());
  }

  finding() {
    const spot = this.sweep.sweet_spot;
    return spot ? `Sweet spot: rank ${spot.rank} on ${spot.target}` : "No setting was trained with every seed";
  }

  certainty() {
    const { sweet_spot: spot, base_loss: base, heldout_tokens: tokens } = this.sweep;
    const without = base === null ? "" : ` Without an adapter the loss is ${base.toFixed(4)}, over ${whole(tokens)} tokens.`;
    if (!spot) return without;
    const confidence = spot.probability === null ? "With one seed the noise is unknown: this is the lowest loss, not proved to be better than others."
      : `The smallest setting within one run's scatter (${spot.noise.toPrecision(2)}) of the best; confidence at least ${percent(Math.floor(1000 * spot.probability) / 1000)}.`;
    return confidence + without;
  }

  lines() {
    const { settings, sweet_spot: spot, base_loss: base } = this.sweep;
    const targets = [...new Set(settings.map((setting) => setting.target))];
    const params = [...new Set(settings.map((setting) => setting.params))];
    const traces = targets.map((target, place) => {
      const line = settings.filter((setting) => setting.target === target).sort((a, b) => a.params - b.params);
      return {
        x: line.map((setting) => setting.params), y: line.map((setting) => setting.loss), name: plain(target),
        mode: "lines+markers", line: { color: series(place), width: 2, dash: DASHES[place % 4] }, marker: { size: 9, symbol: ["circle", "square", "diamond", "x"][place % 4] },
        error_y: { type: "data", array: line.map((setting) => setting.standard_error ?? 0), visible: line.some((setting) => setting.standard_error), color: series(place) },
        text: line.map((setting) => `rank ${setting.rank}`), hovertemplate: "%{text}<br>%{x:,} parameters<br>loss %{y:.4f}<extra>%{fullData.name}</extra>",
      };
    });
    const annotations = [];
    if (spot) {
      const at = settings.find((setting) => setting.rank === spot.rank && setting.target === spot.target);
      annotations.push({ x: Math.log10(at.params), y: at.loss, text: "sweet spot", arrowcolor: color("--soft"), ax: 0, ay: -38, font: { color: color("--ink") } });
    }
    const shapes = base === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: base, y1: base, line: { color: color("--soft"), dash: "dash", width: 1 } }];
    if (base !== null) annotations.push({ xref: "paper", x: 0, y: base, xanchor: "left", yanchor: "bottom", text: "without an adapter", showarrow: false, font: { color: color("--soft") } });
    return { traces, layout: { xaxis: { title: "trained parameters", type: "log", tickvals: params, ticktext: params.map(count) }, yaxis: { title: "held-out loss" }, shapes, annotations } };
  }

  columns() {
    const { settings, cells } = this.sweep;
    const ofSetting = (i) => cells.filter((cell) => cell.target === settings[i].target && cell.rank === settings[i].rank && cell.loss !== null);
    const time = (i) => ofSetting(i).reduce((sum, cell) => sum + cell.seconds, 0) / ofSetting(i).length;
    const memory = (i) => Math.max(...ofSetting(i).map((cell) => cell.peak_bytes));
    const column = (key, label, value, text, numeric = true) => ({ key, label, value, text, numeric });
    return [
      column("target", "Target", (i) => settings[i].target, (i) => settings[i].target, false),
      column("rank", "Rank", (i) => settings[i].rank, (i) => whole(settings[i].rank)),
      column("params", "Parameters", (i) => settings[i].params, (i) => count(settings[i].params)),
      column("loss", "Held-out loss", (i) => settings[i].loss, (i) => settings[i].loss.toFixed(4) + (settings[i].standard_error ? ` ± ${settings[i].standard_error.toFixed(4)}` : "")),
      column("seeds", "Seeds", (i) => settings[i].seeds, (i) => whole(settings[i].seeds)),
      column("seconds", "Mean time", time, (i) => seconds(time(i))),
      column("memory", "Peak memory", memory, (i) => bytes(memory(i))),
    ];
  }
}
