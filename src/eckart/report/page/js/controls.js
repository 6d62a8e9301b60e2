// The choice of ranks: the rule, the slider, the modules and the data type.

import { budgetStops, ITEM_BYTES, parseBudget } from "./choice.js";
import { el, fill, segmented, select, unique } from "./dom.js";
import { percent, whole } from "./format.js";

const RULES = [["rank", "Rank"], ["energy", "Energy"], ["error", "Error"], ["budget", "Budget"], ["noise", "Above noise"], ["gain", "Gain"]];
const USUAL_RANK = 16;
const EXPLAINED = {
  rank: "Every matrix gets this rank, or its full rank if that is lower.",
  energy: "Every matrix gets the smallest rank that keeps this share of its squared norm.",
  error: "Every matrix gets the smallest rank whose relative error is below this.",
  budget: "All matrices share this size so that they keep the most energy in total.",
  noise: "Every matrix gets its directions that stand above the rounding of the stored numbers.",
};

export class Controls {
  /**
   * @param {Chooser} chooser
   * @param {() => void} change called after every change of the choice.
   */
  constructor(chooser, change) {
    this.chooser = chooser;
    this.analysis = chooser.analysis;
    this.change = change;
    this.kinds = new Set(this.choosable());
    this.dtype = "float32";
    const { gain } = this.analysis;
    this.measured = new Set(gain?.names ?? []);
    this.stops = { ...this.analysis.stops, budget: this.budgets(), noise: this.noiseKnown() ? ["noise"] : [], gain: (gain?.stops ?? []).map((stop) => stop.keep) };
    this.position = {
      rank: Math.max(this.stops.rank.indexOf(Math.min(USUAL_RANK, this.stops.rank.at(-1))), 0),
      energy: this.stops.energy.indexOf(0.9),
      error: this.stops.error.indexOf(0.1),
      budget: this.usualBudget(),
      noise: 0,
      gain: gain ? (gain.stops.findIndex((stop) => stop.gain >= gain.keep) + gain.stops.length) % gain.stops.length : 0,
    };
    this.mode = "energy"; // what the headline speaks of
    this.node = this.build();
    this.show();
  }

  /** Kinds that a command accepts. */
  choosable() {
    const all = this.analysis.kinds.map((_, kind) => kind);
    return this.analysis.kind === "adapter" ? all
      : all.filter((kind) => Object.hasOwn(this.analysis.targets.patterns, this.analysis.kinds[kind]));
  }

  /** The choice as it stands. */
  get choice() {
    const value = this.stops[this.mode][this.position[this.mode]];
    const choice = { mode: this.mode, value, kinds: this.kinds, dtype: this.dtype };
    if (this.mode !== "gain") return choice;
    const { matrices } = this.analysis;
    const measured = new Set(matrices.filter((matrix) => this.measured.has(matrix.name)).map((matrix) => matrix.kind));
    const kinds = new Set([...this.kinds].filter((kind) => measured.has(kind)));
    return { ...choice, kinds, stop: this.stop, all: kinds.size === measured.size };
  }

  /** The measured rank that the slider is at. */
  get stop() {
    return this.analysis.gain.stops[this.position.gain];
  }

  /** Whether the rounding is known of every matrix of an update that can be taken. */
  noiseKnown() {
    const { kind, matrices } = this.analysis;
    const taken = matrices.filter((matrix) => this.kinds.has(matrix.kind));
    return kind === "delta" && taken.length > 0 && taken.every((matrix) => matrix.noise || matrix.spectrum.fro === 0);
  }

  /** Sizes of adapters as typed on a command line, from one rank of one matrix to the largest that is certain. */
  budgets() {
    const { costs, places } = this.chooser.taken(this.kinds);
    if (!costs.length || !this.budgetFits()) return [];
    const most = this.chooser.largestBudget(this.kinds);
    if (this.analysis.kind === "adapter") return budgetStops(Math.min(...costs), most, "");
    const bytes = (params) => params * ITEM_BYTES[this.dtype] + 512 * places.length;
    return budgetStops(bytes(Math.min(...costs)), bytes(most), "B");
  }

  /** False for an adapter with more than factors, or with experts: its spectra do not decide how it is resized. */
  budgetFits() {
    const { kind, skipped: rest, matrices } = this.analysis;
    return kind !== "adapter" || (rest.length === 0 && matrices.every((matrix) => !matrix.name.includes("[")));
  }

  /** The largest stop within the size of the usual rank. */
  usualBudget() {
    const { costs } = this.chooser.taken(this.kinds);
    const params = USUAL_RANK * costs.reduce((sum, cost) => sum + cost, 0);
    const limit = this.analysis.kind === "adapter" ? params : params * ITEM_BYTES[this.dtype];
    return Math.max(this.stops.budget.findLastIndex((text) => parseBudget(text) <= limit), 0);
  }

  build() {
    const id = unique("slider");
    this.slider = el("input", { type: "range", id, min: 0, step: 1, "data-slider": true, input: () => this.slid() });
    this.label = el("label", { for: id });
    this.shown = el("output", { for: id, class: "slider-value", "data-slider-value": true });
    this.help = el("p", { class: "soft help" });
    const rules = RULES.filter(([mode]) => this.stops[mode].length);
    return el("section", { class: "card controls", "aria-label": "Choice of ranks" },
      segmented("Choose ranks by", rules, this.mode, (mode) => {
        this.mode = mode;
        this.show();
        this.change();
      }),
      el("div", { class: "slider" }, el("div", { class: "slider-head" }, this.label, this.shown), this.slider, this.help),
      this.analysis.kind === "adapter" ? null : this.modules());
  }

  /** The kinds of modules, and the data type. */
  modules() {
    const hint = unique("modules-hint");
    this.boxes = new Map(this.choosable().map((kind) => [kind,
      el("input", { type: "checkbox", checked: true, "aria-describedby": hint, change: (event) => this.take(kind, event.target.checked) })]));
    this.lastHint = el("p", { class: "soft help", id: hint });
    this.guardLast();
    return el("div", { class: "modules" },
      el("fieldset", { class: "checks" }, el("legend", {}, "Modules"), ...[...this.boxes].map(([kind, box]) => el("label", { class: "check" }, box, this.analysis.kinds[kind]))),
      this.lastHint,
      select("Factors in", Object.keys(ITEM_BYTES).map((name) => [name, name]), this.dtype, (dtype) => {
        this.dtype = dtype;
        this.refit();
      }));
  }

  take(kind, checked) {
    this.kinds = new Set(this.kinds);
    if (checked) this.kinds.add(kind);
    else this.kinds.delete(kind);
    this.guardLast();
    this.refit();
  }

  /** The last kind cannot be taken away, since an adapter needs one; a line says so. */
  guardLast() {
    const last = this.kinds.size === 1;
    for (const [kind, box] of this.boxes) box.disabled = last && this.kinds.has(kind);
    fill(this.lastHint, last ? "An adapter needs at least one kind of module." : null);
  }

  /** After a change of modules or data type, which changes the range of sizes. */
  refit() {
    const before = this.stops.budget[this.position.budget];
    this.stops.budget = this.budgets();
    const same = this.stops.budget.indexOf(before);
    this.position.budget = same < 0 ? this.usualBudget() : same;
    this.show();
    this.change();
  }

  slid() {
    this.position[this.mode] = Number(this.slider.value);
    this.show();
    this.change();
  }

  show() {
    const stops = this.stops[this.mode];
    this.slider.hidden = this.mode === "noise";
    this.slider.max = stops.length - 1;
    this.slider.value = this.position[this.mode];
    const { value } = this.choice;
    const words = {
      rank: () => whole(value), energy: () => percent(value, 4), error: () => percent(value, 4), budget: () => budgetWords(value),
      noise: () => "", gain: () => `${percent(this.stop.gain)} at rank ${whole(this.stop.rank)}`,
    }[this.mode]();
    const name = { rank: "Rank of every matrix", energy: "Energy to keep", error: "Error to stay below", budget: "Total adapter size", noise: "Directions above the noise", gain: "Gain kept" };
    fill(this.label, name[this.mode]);
    fill(this.shown, words);
    this.slider.setAttribute("aria-valuetext", words);
    const limit = this.mode === "budget" && this.analysis.thinned.matrices
      ? ` The slider ends at ${budgetWords(stops.at(-1))}, where the values on this page end; the command accepts any size.` : "";
    fill(this.help, (this.mode === "gain" ? this.gainWords() : EXPLAINED[this.mode]) + limit);
  }

  /** What was measured at the stop of the slider, and what was not. */
  gainWords() {
    const { title, metric, shared, tokens } = this.analysis.gain;
    const { interval, next, rank } = this.stop;
    const ranks = shared ? `Ranks shared at the size of rank ${rank}` : `Rank ${rank} of every matrix`;
    const range = interval ? ` (95% interval ${percent(interval.lower)} to ${percent(interval.upper)})` : "";
    const text = tokens ? ` on ${whole(tokens)} tokens of held-out text` : " on held-out text";
    return `${ranks}, whose ${metric === "kl" ? "divergence from the fine-tune" : "loss"}${text} was measured for ${title}${range}.`
      + (next ? "" : " The rank below it was not measured; it may keep enough too.");
  }
}

/** "20MB" as 20 MB, "5M" as 5 M parameters. */
export function budgetWords(text) {
  const [, number, unit] = /^([\d.]+)(.*)$/.exec(text);
  return unit.endsWith("B") ? `${number} ${unit}` : `${number} ${unit} parameters`.replace("  ", " ");
}
