// Printing: charts are drawn anew, in dark ink and as wide as paper, and put back afterwards.

import { redraw } from "./chart.js";
import { setTheme } from "./theme.js";

const PAPER_WIDTH = "660px"; // what A4 and letter have between their margins

/** Keeps watch for the page being printed. */
export function watchPrinting() {
  let before = "auto";
  window.addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    setTheme("light");
    redraw(PAPER_WIDTH);
  });
  window.addEventListener("afterprint", () => setTheme(before));
}
