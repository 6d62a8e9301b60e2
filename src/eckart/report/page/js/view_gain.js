// The adapters tab: extracted adapters side by side, the gain each recovers, and each one's layers and gain curve.

import { chart, plain, series } from "./chart.js";
import { GainCurve } from "./gain_curve.js";
import { el, fill, select } from "./dom.js";
import { bytes, count, digits, median, percent, shape, whole } from "./format.js";
import { HeatMap, legend } from "./heatmap.js";
import { cellsOf, intro, scrolled } from "./parts.js";
import { Scale } from "./scale.js";
import { DataTable } from "./table.js";
import { onTheme } from "./theme.js";

export class GainView {
  constructor(extractions) {
    this.all = extractions;
    this.chosen = 0;
    this.metric = new Set(extractions[0].layers.map((layer) => layer.rank)).size > 1 ? "rank" : "error";
    this.measured = extractions.filter((one) => one.eval?.gain_recovered !== null && one.eval !== null);
    this.compared = this.measured.length > 1 || this.measured.some((one) => !one.gain);
    this.plot = el("div", { class: "chart tall" });
    this.curve = el("div", {});
    this.holder = el("div", {});
    this.key = el("div", {});
    const table = new DataTable("adapters", [...extractions.keys()], this.columns(), (row) => this.show(row));
    table.render();
    const picks = el("div", { class: "options" },
      extractions.length > 1 ? select("Adapter", extractions.map((one, i) => [i, one.title]), 0, (i) => this.show(Number(i))) : null,
      select("Colour", [["rank", "Rank"], ["error", "Relative error"]], this.metric, (metric) => { this.metric = metric; this.paint(); }));
    this.node = el("div", { class: "view" }, intro("Adapters", this.finding(), null),
      this.compared ? this.gainCard() : this.measured.length ? null : el("p", { class: "soft help" }, "No gain was measured: eckart extract … --eval TEXT measures how much of the fine-tune's lower loss an adapter recovers."),
      el("section", { class: "card", "aria-label": "All adapters" }, el("h2", {}, "All adapters"), table.node),
      this.curve,
      el("section", { class: "card", "aria-label": "Layers of an adapter" }, el("div", { class: "card-head" }, el("h2", {}, "Layers × modules"), picks), this.holder, this.key));
    onTheme(() => this.paint());
  }

  start() {
    if (this.compared) chart(this.plot, this.finding(), () => this.lines());
    this.show(0);
  }

  finding() {
    const best = [...this.measured].sort((a, b) => b.eval.gain_recovered - a.eval.gain_recovered)[0];
    if (best) return `${best.title} recovers ${percent(best.eval.gain_recovered)} of the gain with ${count(best.params)} parameters`;
    const one = this.all[0];
    return `${one.title}: relative error ${percent(one.error)} with ${count(one.params)} parameters`;
  }

  gainCard() {
    const { base_loss: base, tuned_loss: tuned } = this.measured[0].eval;
    return el("section", { class: "card", "aria-label": "Gain recovered over rank" },
      el("div", { class: "card-head" }, el("h2", {}, "Gain recovered over rank"),
        el("span", { class: "soft" }, `loss of the base ${base.toFixed(4)}, of the fine-tune ${tuned.toFixed(4)} nats per token`)),
      this.plot, el("p", { class: "soft help" }, "Weight error does not predict loss: an adapter with a large error can still recover most of the gain."));
  }

  lines() {
    const rank = (one) => median(one.layers.map((layer) => layer.rank));
    const sorted = [...this.measured].sort((a, b) => rank(a) - rank(b));
    const line = (name, value, place, symbol, dash) => ({
      x: sorted.map(rank), y: sorted.map(value), name, mode: "lines+markers", line: { color: series(place), width: 2, dash }, marker: { size: 9, symbol },
      text: sorted.map((one) => plain(one.title)), hovertemplate: "%{text}<br>median rank %{x}<br>%{y:.1%}<extra>%{fullData.name}</extra>",
    });
    return {
      traces: [line("gain recovered", (one) => one.eval.gain_recovered, 2, "circle", "solid"), line("relative weight error", (one) => one.error, 1, "square", "dash")],
      layout: { xaxis: { title: "median rank", type: "log", tickvals: [...new Set(sorted.map(rank))] }, yaxis: { tickformat: ".0%", rangemode: "tozero" } },
    };
  }

  columns() {
    const column = (key, label, value, text, numeric = true) => ({ key, label, value, text: text ?? ((i) => digits(value(i))), numeric });
    const all = this.all;
    const ranks = (i) => all[i].layers.map((layer) => layer.rank);
    const span = (i) => { const [a, b] = [Math.min(...ranks(i)), Math.max(...ranks(i))]; return a === b ? `${a}` : `${a}–${b}`; };
    const loss = (i) => all[i].eval?.adapter_loss ?? null;
    const gain = (i) => all[i].eval?.gain_recovered ?? null;
    return [
      column("title", "Adapter", (i) => all[i].title, (i) => all[i].title, false),
      column("rank", "Ranks", (i) => median(ranks(i)), span),
      column("params", "Parameters", (i) => all[i].params, (i) => count(all[i].params)),
      column("bytes", "Size", (i) => all[i].bytes, (i) => bytes(all[i].bytes)),
      column("error", "Relative error", (i) => all[i].error, (i) => percent(all[i].error)),
      column("loss", "Loss", loss, (i) => (loss(i) === null ? "–" : loss(i).toFixed(4))),
      column("gain", "Gain recovered", gain, (i) => percent(gain(i))),
    ];
  }

  show(i) {
    this.chosen = i;
    const one = this.all[i];
    this.map = new HeatMap({ rows: one.kinds, columns: one.stack }, cellsOf(one.layers, one.stack), () => {});
    fill(this.holder, el("p", { class: "name" }, one.title), scrolled(el("div", { class: "map-scroll" }, this.map.node)));
    if (this.map.cells.length) this.map.select(this.map.cells[0]);
    this.paint();
    const curve = one.gain ? new GainCurve(one) : null;
    fill(this.curve, curve?.node);
    curve?.draw();
  }

  paint() {
    if (!this.map) return;
    const one = this.all[this.chosen];
    const label = this.metric === "rank" ? "rank" : "relative error";
    const text = this.metric === "rank" ? whole : percent;
    const ofCell = (cell) => median(cell.items.map((i) => one.layers[i][this.metric]));
    const scale = new Scale(this.map.cells.map(ofCell));
    this.map.paint(ofCell, scale, (cell, number) => ({
      short: this.metric === "rank" ? `${Math.round(number)}` : `${Math.round(100 * number)}`,
      long: `${one.layers[cell.items[0]].name}, ${shape(one.layers[cell.items[0]].shape)}: ${label} ${text(number)}`,
    }));
    fill(this.key, legend(scale, label, text));
  }
}
