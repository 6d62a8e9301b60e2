// Charts by plotly.js, in the colours of the page; they follow its theme and its width.

import { unpacked } from "./block.js";
import { color, onTheme } from "./theme.js";

let library = null;
const drawn = new Map();

/** plotly.js, unpacked and started once, when the first chart wants it. */
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

/** Okabe and Ito's colours, which colour-blind readers tell apart, in the shades that the theme has of them. */
export const series = (place) => color(`--series-${place % 7}`);
export const DASHES = ["solid", "dash", "dot", "dashdot"];

/** A name as plotly.js shows it literally, though it reads some markup in its texts. */
export const plain = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "% {");

/**
 * Draws a chart, again at every change of the theme.
 * @param {HTMLElement} node where it goes; it becomes an image with the label.
 * @param {string} label what it shows, for those who do not see it.
 * @param {() => {traces: Object[], layout: Object}} make called at each drawing.
 */
export async function chart(node, label, make) {
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", label);
  drawn.set(node, make);
  const Plotly = await plotly();
  if (drawn.get(node) !== make || !node.isConnected) return; // something newer goes there
  const { traces, layout } = make();
  await Plotly.react(node, traces, dressed(layout, node), { displayModeBar: false, responsive: true });
}

/** Moves marks of a chart that is drawn, without drawing its lines again. */
export async function moved(node, shapes, annotations) {
  const Plotly = await plotly();
  if (node.data) await Plotly.relayout(node, { shapes, annotations });
}

/** Draws what is shown once more, in the width that is given or else that of its place. */
export function redraw(width = "") {
  for (const [node, make] of drawn) {
    node.style.width = width;
    if (!node.isConnected) drawn.delete(node);
    else if (node.offsetParent !== null) chart(node, node.getAttribute("aria-label"), make);
  }
}

onTheme(() => redraw());

/** A vertical mark at x, with its words beside the axis. */
export function markX(x, ink, dash = "solid") {
  return { type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: ink, width: 1.5, dash } };
}

export function markY(y, ink, dash = "dash") {
  return { type: "line", x0: 0, x1: 1, xref: "paper", y0: y, y1: y, line: { color: ink, width: 1.5, dash } };
}

function dressed(layout, node) {
  const narrow = node.clientWidth < 480;
  const axis = (own) => ({
    gridcolor: color("--line"), zeroline: false, linecolor: color("--edge"), tickcolor: color("--edge"), ticks: "outside",
    ticklen: 4, ...own, title: { text: own?.title ?? "", standoff: 8, font: { size: 12.5 } },
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
    ...Object.fromEntries(axes.map((key) => [key, axis(layout[key])])),
  };
}
