// The totals of the choice, the ranks by module kind, and the command that makes the adapter.

import { commandText, rankPattern } from "./command.js";
import { el, fill } from "./dom.js";
import { bytes, count, digits, median, percent, whole } from "./format.js";

export class Totals {
  constructor(analysis) {
    this.analysis = analysis;
    this.tiles = el("dl", { class: "tiles", "aria-live": "polite" });
    this.note = el("p", { class: "soft help" });
    this.kinds = el("ul", { class: "shares", "aria-label": "Ranks by kind of module" });
    this.code = el("code", { "data-command": true });
    this.copied = el("span", { class: "soft", role: "status" });
    this.copyButton = el("button", { type: "button", class: "primary", click: () => this.copy() }, "Copy command");
    this.saveButton = el("button", { type: "button", click: () => this.save() }, "Download rank_pattern");
    this.node = el("section", { class: "card totals", "aria-label": "Size and error of the choice" },
      this.tiles, this.note, this.kinds, this.commandBox());
  }

  commandBox() {
    if (!this.analysis.command) {
      const next = this.analysis.kind === "weights"
        ? "These are the weights of a model. To make an adapter, analyze a fine-tune: eckart analyze TUNED --base BASE "
          + "-o DIR writes a page of the update, with the command that extracts it."
        : this.analysis.source.startsWith("<") ? "This analysis is of tensors in memory, which no command can read."
          : "None of these matrices can become factors of an adapter: embeddings and experts are not extracted.";
      return el("div", { class: "command" }, el("p", { class: "help" }, next), el("div", { class: "buttons" }, this.saveButton));
    }
    return el("div", { class: "command" },
      el("pre", { tabindex: 0, "aria-label": "Command for this adapter" }, this.code),
      el("div", { class: "buttons" }, this.copyButton, this.saveButton, this.copied));
  }

  /** Shows a choice and its result. */
  show(choice, result) {
    this.choice = choice;
    this.result = result;
    const ranks = result.ranks.filter((rank) => rank !== null);
    const few = Math.min(...ranks);
    const many = Math.max(...ranks);
    const most = result.bounded ? "≤ " : "";
    const all = this.analysis.params;
    const matrix = this.analysis.kind === "weights" ? "W" : "ΔW";
    fill(this.tiles,
      tile("params", "Parameters", result.params, `${most}${count(result.params)}`,
        `${whole(result.params)}, ${percent(result.params / all)} of ${count(all)}`),
      tile("bytes", "Adapter size", result.bytes, `${most}${bytes(result.bytes)}`, `factors in ${choice.dtype}`),
      tile("error", "Relative error", result.error, `${most}${percent(result.error)}`, `‖${matrix} − ${matrix}ᵣ‖ / ‖${matrix}‖ over all matrices`),
      tile("energy", "Energy kept", result.energy, `${result.bounded ? "≥ " : ""}${percent(result.energy)}`, `share of ‖${matrix}‖²`),
      tile("ranks", "Ranks", median(ranks), ranks.length === 0 ? "–" : few === many ? `${few}` : `${few}–${many}`,
        `median ${digits(median(ranks))} over ${whole(ranks.length)} matrices`));
    fill(this.note, this.words(choice, result));
    fill(this.kinds, ...this.shares(result));
    if (this.analysis.command) fill(this.code, commandText(this.analysis, choice));
    fill(this.copied);
  }

  /** One line per kind of module: its ranks, and a bar for its share of the parameters. */
  shares({ ranks, params }) {
    const { kinds, matrices } = this.analysis;
    return kinds.flatMap((kind, number) => {
      const taken = [...matrices.keys()].filter((i) => matrices[i].kind === number && ranks[i] !== null);
      if (!taken.length) return [];
      const [few, many] = [Math.min, Math.max].map((end) => end(...taken.map((i) => ranks[i])));
      const share = taken.reduce((sum, i) => sum + ranks[i] * (matrices[i].shape[0] + matrices[i].shape[1]), 0) / (params || 1);
      return [el("li", {}, el("span", { class: "share-kind" }, kind), el("span", { class: "share-bar", "aria-hidden": "true" },
        el("span", { style: `width:${100 * share}%` })), el("span", { class: "soft" }, `rank ${few === many ? few : `${few}–${many}`}, ${percent(share, 2)} of the size`))];
    });
  }

  words(choice, result) {
    const { thinned, kind } = this.analysis;
    const texts = [];
    if (result.allocation) texts.push(guarantee(result.allocation, result.whole));
    if (result.bounded && !result.allocation) {
      texts.push(`For ${thinned.partial} large matrices only the leading singular values were computed: a rank beyond them is sufficient, but not proved to be the smallest. The command computes the values it needs.`);
    }
    if (choice.mode === "gain" && !choice.all) texts.push("The gain was measured with more modules than are taken here; with fewer, it is lower.");
    if (kind === "delta" && choice.mode !== "gain") texts.push("Error does not predict loss: add --eval TEXT to the command to measure it.");
    return texts.join(" ");
  }

  async copy() {
    const text = commandText(this.analysis, this.choice);
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const box = el("textarea", { class: "hidden" });
      box.value = text;
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
    fill(this.copied, "Copied");
  }

  /** Saves PEFT's fields as a file: LoraConfig(**json.load(file)) takes them. */
  save() {
    const { matrices } = this.analysis;
    const taken = this.result.ranks.flatMap((rank, i) => (rank > 0 && !matrices[i].name.includes("[") ? [i] : []));
    const fields = rankPattern(taken.map((i) => matrices[i].name), taken.map((i) => this.result.ranks[i]));
    const blob = new Blob([`${JSON.stringify(fields, null, 1)}\n`], { type: "application/json" });
    const link = el("a", { href: URL.createObjectURL(blob), download: "rank_pattern.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}

function tile(name, label, value, words, more) {
  return el("div", { class: "tile" }, el("dt", {}, label),
    el("dd", {}, el("span", { class: "tile-value", "data-total": name, "data-value": value }, words),
      el("span", { class: "soft" }, more)));
}

/** What is proved about the ranks of a budget. */
function guarantee({ certain, gap }, whole) {
  if (!certain) return "Best among the singular values on this page; others could rank among them.";
  if (gap === 0) return "Optimal: no choice of ranks of this size keeps more energy.";
  return `Best possible at this size, to within ${percent(gap / whole, 2)} of the energy.`;
}
