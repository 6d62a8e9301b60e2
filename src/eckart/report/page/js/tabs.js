// Tabs, made when they are first opened; one alone needs no tab.

import { el } from "./dom.js";

/** @param {[string, () => {node: Node, start: () => void}][]} views title and maker of each. */
export function tabs(views) {
  const panels = views.map(([title], i) => el("div", {
    role: views.length > 1 ? "tabpanel" : null, id: `panel-${i}`, "aria-labelledby": views.length > 1 ? `tab-${i}` : null, hidden: true,
  }));
  const buttons = views.map(([title], i) => el("button", {
    role: "tab", type: "button", id: `tab-${i}`, "aria-controls": `panel-${i}`, click: () => show(i), keydown: (event) => moved(event, i),
  }, title));

  function show(chosen) {
    panels.forEach((panel, i) => { panel.hidden = i !== chosen; });
    buttons.forEach((button, i) => {
      button.setAttribute("aria-selected", String(i === chosen));
      button.tabIndex = i === chosen ? 0 : -1;
    });
    if (panels[chosen].childElementCount) return;
    const view = views[chosen][1]();
    panels[chosen].append(view.node);
    requestAnimationFrame(() => view.start());
  }

  function moved(event, i) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (i + step + views.length) % views.length;
    show(next);
    buttons[next].focus();
  }

  requestAnimationFrame(() => show(0));
  const bar = views.length > 1 ? el("div", { role: "tablist", class: "tabs", "aria-label": "Results" }, ...buttons) : null;
  return el("div", {}, ...(bar ? [bar] : []), ...panels);
}
