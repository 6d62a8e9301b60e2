// Charts by plotly.js, in the colours of the page; they follow its theme and its width.

import { unpacked } from "./block.js";
import { digits } from "./format.js";
import { color, onTheme } from "./theme.js";

let library = null;
const drawn = new Map();

/** plotly.js, unpacked and started once, for the first chart. */
function plotly() {
  library ??= unpacked("plotly").then((code) => new Promise((done, fail) => {
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    const script = document.createElement("script");
    script.onload = () => done(window.Plotly);
    script.onerror = () => fail(new Error("plotly.js did not start"));
    script.src = address;
    document.head.append(script);
  }));
  return library;
}

/** Okabe and Ito's palette, which colour-blind readers can distinguish, in the shades of the theme. */
export const series = (place) => color(`--series-${place % 7}`);
export const DASHES = ["solid", "dash", "dot", "dashdot"];

/** A name as plotly.js shows it literally, though it reads some markup in its texts. */
export const plain = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");

/**
 * Draws a chart, again at every change of the theme.
 * @param {HTMLElement} node its container, which becomes an image with the label.
 * @param {string} label what it shows, for screen readers.
 * @param {() => {traces: Object[], layout: Object}} make called at each drawing.
 */
export async function chart(node, label, make) {
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", label);
  drawn.set(node, make);
  const Plotly = await plotly();
  if (drawn.get(node) !== make || !node.isConnected) return; // a newer chart replaces this one
  const { traces, layout } = make();
  await Plotly.react(node, traces, dressed(layout, node), { displayModeBar: false, responsive: true });
}

/** Moves the marks of a chart without drawing its lines again. */
export async function moved(node, shapes, annotations) {
  const Plotly = await plotly();
  if (node.data) await Plotly.relayout(node, { shapes, annotations });
}

/** Draws all visible charts again, in a given width or else that of their containers. */
export function redraw(width = "") {
  for (const [node, make] of drawn) {
    node.style.width = width;
    if (!node.isConnected) drawn.delete(node);
    else if (node.offsetParent !== null) chart(node, node.getAttribute("aria-label"), make);
  }
}

onTheme(() => redraw());

/**
 * Ticks of a logarithmic axis, all of one size: powers of ten, or 1, 2 and 5 of each where there are few of those.
 * @param {number[]} values what is drawn; others than positive numbers are ignored.
 */
export function logTicks(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return {};
  const [low, high] = [Math.min(...positive), Math.max(...positive)].map(Math.log10);
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const step = Math.ceil(powers.length / 8);
  if (high - low >= 2) {
    const shown = powers.filter((power) => power % step === 0);
    return { tickvals: shown.map((power) => 10 ** power), ticktext: shown.map((power) => `10<sup>${power < 0 ? "−" : ""}${Math.abs(power)}</sup>`) };
  }
  const shown = powers.flatMap((power) => [1, 2, 5].map((first) => first * 10 ** power));
  return { tickvals: shown, ticktext: shown.map((value) => digits(value)) };
}

/** A vertical line at x. */
export function markX(x, ink, dash = "solid") {
  return { type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 1.5, dash } };
}

/** A horizontal line at y. */
export function markY(y, ink, dash = "dash") {
  return { type: "line", x0: 0, x1: 1, xref: "paper", y0: y, y1: y, line: { color: ink, width: 1.5, dash } };
}

function dressed(layout, node) {
  const narrow = node.clientWidth < 480;
  const axis = (given, key) => ({
    automargin: key.startsWith("y"), // its title keeps clear of the numbers, however long these are
    gridcolor: color("--line"), zeroline: false, linecolor: color("--edge"), tickcolor: color("--edge"), ticks: "outside",
    ticklen: 4, ...given, title: { text: given?.title ?? "", standoff: 8, font: { size: 12.5 } },
  });
  const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
  return {
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: "inherit", size: narrow ? 11 : 12.5, color: color("--ink") },
    margin: { l: narrow ? 58 : 64, r: 14, t: 12, b: 46 },
    hovermode: "closest",
    hoverlabel: { bgcolor: color("--card"), bordercolor: color("--edge"), font: { color: color("--ink") } },
    dragmode: false,
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    ...layout,
    ...Object.fromEntries(axes.map((key) => [key, axis(layout[key], key)])),
  };
}
