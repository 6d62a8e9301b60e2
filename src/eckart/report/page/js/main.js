// Opens the page: reads its data and creates a tab for each result.

import { json, unpacked } from "./block.js";
import { el, fill, segmented } from "./dom.js";
import { watchPrinting } from "./paper.js";
import { setTheme } from "./theme.js";
import { tabs } from "./tabs.js";
import { AlignmentView } from "./view_alignment.js";
import { AnalysisView } from "./view_analysis.js";
import { ComparisonView } from "./view_comparison.js";
import { GainView } from "./view_gain.js";
import { MergeCheckView } from "./view_merge_check.js";
import { SweepView } from "./view_sweep.js";
import { TrainingView } from "./view_training.js";

async function open() {
  watchPrinting();
  const data = json("data");
  const numbers = new Float64Array(await unpacked("numbers"));
  fill(document.getElementById("head"),
    el("h1", {}, "eckart ", el("span", {}, "report")),
    segmented("Theme", [["auto", "auto"], ["light", "light"], ["dark", "dark"]], "auto", setTheme));
  fill(document.getElementById("main"), tabs(views(data, numbers)));
  fill(document.getElementById("foot"), `Written by eckart ${data.version}. This file contains all of its data and loads nothing.`);
}

/** [title, maker] of every tab. */
function views({ analyses, extractions, trainings, sweeps, comparisons, merges }, numbers) {
  const each = (word, list, make) => list.map((one) => [list.length > 1 ? `${word} · ${one.title}` : word, () => make(one)]);
  return [
    ...each("Ranks", analyses, (one) => new AnalysisView(one, numbers)),
    ...(analyses.length > 1 ? [["Comparison", () => new ComparisonView(analyses, numbers)]] : []),
    ...(extractions.length ? [["Adapters", () => new GainView(extractions)]] : []),
    ...each("Training", trainings, (one) => new TrainingView(one, numbers)),
    ...each("Sweep", sweeps, (one) => new SweepView(one)),
    ...each("A and B", comparisons, (one) => new AlignmentView(one)),
    ...each("Merge check", merges, (one) => new MergeCheckView(one)),
  ];
}

open().catch((error) => {
  fill(document.getElementById("main"), el("p", { class: "loading", role: "alert" },
    `The report could not be opened: ${error.message}. It needs a browser from 2023 or later.`));
  throw error;
});
