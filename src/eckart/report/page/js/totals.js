// What the choice comes to, for all matrices together, and the command that makes it.

import { commandText, rankPattern } from "./command.js";
import { el, fill } from "./dom.js";
import { bytes, count, digits, median, percent, whole } from "./format.js";

export class Totals {
  constructor(analysis) {
    this.analysis = analysis;
    this.tiles = el("dl", { class: "tiles", "aria-live": "polite" });
    this.note = el("p", { class: "soft help" });
    this.code = el("code", { "data-command": true });
    this.copied = el("span", { class: "soft", role: "status" });
    this.copyButton = el("button", { type: "button", class: "primary", click: () => this.copy() }, "Copy command");
    this.saveButton = el("button", { type: "button", click: () => this.save() }, "Download rank_pattern");
    this.node = el("section", { class: "card totals", "aria-label": "What the choice comes to" },
      this.tiles, this.note, this.commandBox());
  }

  commandBox() {
    if (!this.analysis.command) {
      const next = this.analysis.kind === "weights"
        ? "These are the weights themselves. An adapter is made from a fine-tune of them: eckart analyze TUNED --base "
          + "BASE -o DIR shows its update here, with the command that extracts it."
        : this.analysis.source.startsWith("<") ? "This analysis was made of tensors in memory, which no command can read again."
          : "None of these matrices can become factors of an adapter: embeddings and experts stay as they are.";
      return el("div", { class: "command" }, el("p", { class: "help" }, next), el("div", { class: "buttons" }, this.saveButton));
    }
    return el("div", { class: "command" },
      el("pre", { tabindex: 0, "aria-label": "Command that makes this adapter" }, this.code),
      el("div", { class: "buttons" }, this.copyButton, this.saveButton, this.copied));
  }

  /** Shows a choice and what came of it. */
  show(choice, found) {
    this.choice = choice;
    this.found = found;
    const ranks = found.ranks.filter((rank) => rank !== null);
    const few = Math.min(...ranks);
    const many = Math.max(...ranks);
    const most = found.bounded ? "≤ " : "";
    const all = this.analysis.params;
    fill(this.tiles,
      tile("params", "Parameters", found.params, `${most}${count(found.params)}`,
        `${whole(found.params)}, ${percent(found.params / all)} of ${count(all)}`),
      tile("bytes", "Adapter size", found.bytes, `${most}${bytes(found.bytes)}`, `factors in ${choice.dtype}`),
      tile("error", "Relative error", found.error, `${most}${percent(found.error)}`, "‖W − Wᵣ‖ / ‖W‖ over all of them"),
      tile("energy", "Energy kept", found.energy, `${found.bounded ? "≥ " : ""}${percent(found.energy)}`, "share of ‖W‖²"),
      tile("ranks", "Ranks", median(ranks), ranks.length === 0 ? "–" : few === many ? `${few}` : `${few}–${many}`,
        `median ${digits(median(ranks))} over ${whole(ranks.length)} matrices`));
    fill(this.note, this.words(found));
    if (this.analysis.command) fill(this.code, commandText(this.analysis, choice));
    fill(this.copied);
  }

  words(found) {
    const { thinned, kind } = this.analysis;
    const said = [];
    if (found.allocation) said.push(guarantee(found.allocation, found.whole));
    if (found.bounded && !found.allocation) {
      said.push(`Of ${thinned.partial} large matrices only the leading singular values were computed: a rank beyond them is one that is enough, not proved to be the smallest; the command computes what it needs.`);
    }
    if (kind === "delta") said.push("Loss on text, not error, tells how well a rank works: add --eval TEXT to the command.");
    return said.join(" ");
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
    const taken = this.found.ranks.flatMap((rank, i) => (rank > 0 && !matrices[i].name.includes("[") ? [i] : []));
    const fields = rankPattern(taken.map((i) => matrices[i].name), taken.map((i) => this.found.ranks[i]));
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

/** What is proved about a shared budget. */
function guarantee({ certain, gap }, whole) {
  if (!certain) return "Best among the singular values that are here; some that are not could rank among them.";
  if (gap === 0) return "Optimal: no choice of ranks within this size keeps more energy.";
  return `No choice of ranks within this size keeps more than ${percent(gap / whole, 2)} of the energy beyond what this one does.`;
}
