// Elements made from data: text is only ever set as text, so a name from a file can never become markup.

/**
 * A new element.
 * @param {string} tag such as "div"; "svg:path" for one of SVG.
 * @param {Object} [attributes] set as they are; a function is a listener of that event, null leaves one out.
 * @param {...(Node|string|number|null)} children strings become text.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map((child) =>
    child instanceof Node ? child : String(child)));
  return node;
}

/** Puts new content in the place of what an element holds. */
export function fill(node, ...children) {
  node.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Runs a function once before the next frame, however often it was asked for. */
export function onceAFrame(work) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
}

let made = 0;
/** A name that no other element has. */
export function unique(prefix) {
  made += 1;
  return `${prefix}-${made}`;
}

/** A labelled choice of one of several options, each [value, text]. */
export function select(label, options, chosen, change) {
  const id = unique("select");
  const box = el("select", { id, change: () => change(box.value) });
  for (const [value, text] of options) {
    box.append(el("option", { value, selected: String(value) === String(chosen) }, text));
  }
  return el("span", { class: "field" }, el("label", { for: id }, label), box);
}

/** Buttons of which one is pressed, for a choice among few: [value, text] each. */
export function segmented(label, options, chosen, change) {
  const name = unique("choice");
  const inputs = options.map(([value, text]) => el("label", { class: "segment" },
    el("input", { type: "radio", name, value, checked: value === chosen, change: () => change(value) }),
    el("span", {}, text)));
  return el("fieldset", { class: "segmented" }, el("legend", {}, label), el("div", { class: "segments" }, ...inputs));
}
