// Opens the page: reads its data, and gives every kind of result a tab of its own.

import { json, unpacked } from "./block.js";
import { el, fill, segmented } from "./dom.js";
import { watchPrinting } from "./paper.js";
import { setTheme } from "./theme.js";
import { tabs } from "./tabs.js";
import { AnalysisView } from "./view_analysis.js";
import { ComparisonView } from "./view_comparison.js";
import { GainView } from "./view_gain.js";
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
  fill(document.getElementById("foot"), `Made by eckart ${data.version}. This file holds all of its data and loads nothing.`);
}

/** [title, maker] of every tab. */
function views({ analyses, extractions, trainings, sweeps }, numbers) {
  const each = (word, list, make) => list.map((one) => [list.length > 1 ? `${word} · ${one.title}` : word, () => make(one)]);
  return [
    ...each("Ranks", analyses, (one) => new AnalysisView(one, numbers)),
    ...(analyses.length > 1 ? [["Comparison", () => new ComparisonView(analyses, numbers)]] : []),
    ...(extractions.length ? [["Adapters", () => new GainView(extractions)]] : []),
    ...each("Training", trainings, (one) => new TrainingView(one, numbers)),
    ...each("Sweep", sweeps, (one) => new SweepView(one)),
  ];
}

open().catch((error) => {
  fill(document.getElementById("main"), el("p", { class: "loading", role: "alert" },
    `The report could not be opened: ${error.message}. It needs a browser of 2023 or later.`));
  throw error;
});
