// Opens the page: reads its data, and gives every kind of result a tab of its own.

import { json, unpacked } from "./block.js";
import { el, fill, segmented } from "./dom.js";
import { setTheme } from "./theme.js";
import { tabs } from "./tabs.js";
import { AnalysisView } from "./view_analysis.js";

async function open() {
  const data = json("data");
  const numbers = new Float64Array(await unpacked("numbers"));
  fill(document.getElementById("head"),
    el("h1", {}, "eckart ", el("span", {}, "report")),
    segmented("Theme", [["auto", "auto"], ["light", "light"], ["dark", "dark"]], "auto", setTheme));
  const views = data.analyses.map((analysis) => [`Ranks · ${analysis.title}`, () => new AnalysisView(analysis, numbers)]);
  fill(document.getElementById("main"), tabs(views));
  fill(document.getElementById("foot"), `Made by eckart ${data.version}. This file holds all of its data and loads nothing.`);
}

open().catch((error) => {
  fill(document.getElementById("main"), el("p", { class: "loading", role: "alert" },
    `The report could not be opened: ${error.message}. It needs a browser of 2023 or later.`));
  throw error;
});
