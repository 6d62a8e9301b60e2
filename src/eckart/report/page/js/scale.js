// Colours for numbers: light to dark in every way of seeing, and the ink that is read on each.

import { isDark } from "./theme.js";

// ColorBrewer's YlGnBu, whose lightness falls evenly, so that colour-blind readers and grey prints keep the order.
const STOPS = ["#ffffd9", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58"]
  .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Colour [red, green, blue] of a share from 0 to 1: what is more stands out more from the paper. */
export function shade(share) {
  const place = Math.min(Math.max(isDark() ? 1 - share : share, 0), 1) * (STOPS.length - 1);
  const from = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[from].map((value, i) => Math.round(value + (place - from) * (STOPS[from + 1][i] - value)));
}

export const css = (rgb) => `rgb(${rgb.join(" ")})`;

/** Black or white, whichever is read better on a colour. */
export function ink(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

/** A scale over numbers, logarithmic where they span more than two powers of ten. */
export class Scale {
  constructor(numbers, { fromZero = true } = {}) {
    const known = numbers.filter((number) => number !== null && Number.isFinite(number));
    const positive = known.filter((number) => number > 0);
    this.highest = known.length ? Math.max(...known) : 1;
    this.logarithmic = positive.length > 0 && this.highest / Math.min(...positive) > 100;
    this.lowest = this.logarithmic ? Math.min(...positive) : fromZero ? 0 : Math.min(...known);
  }

  share(number) {
    if (this.highest === this.lowest) return number > 0 ? 1 : 0;
    if (!this.logarithmic) return (number - this.lowest) / (this.highest - this.lowest);
    return number > 0 ? Math.log(number / this.lowest) / Math.log(this.highest / this.lowest) : 0;
  }
}
