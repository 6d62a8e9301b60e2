// The gain that an adapter keeps at each rank that was measured, with its interval, as a figure and a table.

import { chart, series } from "./chart.js";
import { el } from "./dom.js";
import { count, percent, whole } from "./format.js";
import { DataTable } from "./table.js";
import { color } from "./theme.js";

export class GainCurve {
  /** @param {Object} extraction with a `gain`. */
  constructor({ title, gain, eval: measured }) {
    this.gain = gain;
    this.plot = el("div", { class: "chart" });
    const { candidates, curve, keep, metric } = gain;
    const what = metric === "kl" ? "divergence from the fine-tune" : "loss";
    this.table = new DataTable("measured ranks", [...curve.keys()], this.columns());
    this.table.render();
    this.node = el("section", { class: "card", "aria-label": "Gain kept at each measured rank" },
      el("div", { class: "card-head" }, el("h2", {}, "Rank by gain"),
        el("span", { class: "soft" }, `${title}: ${what} on ${measured?.tokens ? `${whole(measured.tokens)} tokens of ` : ""}held-out text, ${curve.length} of ${whole(candidates)} ranks measured`)),
      el("p", {}, this.finding(keep)), this.plot, this.table.node);
  }

  /** The point of the rank that was written. */
  get written() {
    return this.gain.curve.find((point) => point.rank === this.gain.rank);
  }

  finding(keep) {
    const { rank, reached, distilled } = this.gain;
    const few = reached && !distilled ? "" : "only ";
    return `Rank ${rank} keeps ${few}${percent(this.written.gain_recovered)} of the gain; ${percent(keep)} was asked for.${distilled ? " Its factors were then distilled." : ""}`;
  }

  draw() {
    chart(this.plot, `Gain kept over the rank. ${this.finding(this.gain.keep)}`, () => this.lines());
  }

  lines() {
    const { curve, keep, shared, distilled } = this.gain;
    const ranks = curve.map((point) => point.rank);
    const away = (point, side) => (point.interval ? Math.abs(point.interval[side] - point.gain_recovered) : 0);
    const [least, most] = [Math.min(...ranks) / 1.15, Math.max(...ranks) * 1.15];
    return {
      traces: [
        { x: [least, most], y: [keep, keep], name: "asked for", mode: "lines", line: { color: series(1), width: 1.5, dash: "dash" }, hoverinfo: "skip" },
        { x: ranks, y: curve.map((point) => point.gain_recovered), name: "measured, with 95% interval", mode: "lines+markers", line: { color: series(0), width: 2 }, marker: { size: 8 },
          error_y: { type: "data", symmetric: false, array: curve.map((point) => away(point, "upper")), arrayminus: curve.map((point) => away(point, "lower")), visible: curve.some((point) => point.interval), color: series(0), thickness: 1.5, width: 5 },
          text: curve.map((point) => `${whole(point.params)} parameters`), hovertemplate: "rank %{x}<br>%{y:.1%} of the gain<br>%{text}<extra></extra>" },
        { x: [this.written.rank], y: [this.written.gain_recovered], name: distilled ? "written, then distilled" : "written", mode: "markers",
          marker: { size: 17, symbol: "circle-open", color: color("--ink"), line: { width: 2 } }, hoverinfo: "skip" },
      ],
      layout: {
        xaxis: { title: shared ? "rank, shared at the same size" : "rank", type: "log", range: [least, most].map(Math.log10), tickvals: spread(ranks) },
        yaxis: { title: "gain kept", tickformat: ".0%" },
      },
    };
  }

  columns() {
    const { curve } = this.gain;
    const column = (key, label, value, text) => ({ key, label, value, text, numeric: key !== "rank" });
    const range = ({ interval }) => (interval ? `${percent(interval.lower)} to ${percent(interval.upper)}` : "–");
    return [
      column("rank", "Rank", (i) => curve[i].rank, (i) => whole(curve[i].rank)),
      column("params", "Parameters", (i) => curve[i].params, (i) => count(curve[i].params)),
      column("loss", this.gain.metric === "kl" ? "KL" : "Loss", (i) => curve[i].loss, (i) => curve[i].loss.toFixed(4)),
      column("gain", "Gain kept", (i) => curve[i].gain_recovered, (i) => percent(curve[i].gain_recovered)),
      column("interval", "95% interval", (i) => curve[i].interval?.lower ?? null, (i) => range(curve[i])),
    ];
  }
}

/** Ranks far enough apart on a logarithmic axis for their numbers. */
function spread(ranks) {
  const room = Math.log(Math.max(...ranks) / Math.min(...ranks) || 1) / 12;
  return ranks.reduce((taken, rank) => (taken.length && Math.log(rank / taken.at(-1)) < room ? taken : [...taken, rank]), []);
}
