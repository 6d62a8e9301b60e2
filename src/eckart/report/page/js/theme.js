// Light, dark, or the system's theme; charts are notified of changes.

const listeners = new Set();
const system = window.matchMedia("(prefers-color-scheme: dark)");

export const isDark = () => {
  const wanted = document.documentElement.dataset.theme;
  return wanted === "dark" || (wanted === "auto" && system.matches);
};

/** Calls a function at every change of the theme. */
export const onTheme = (listener) => listeners.add(listener);

export function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  listeners.forEach((listener) => listener());
}

system.addEventListener("change", () => listeners.forEach((listener) => listener()));

/** A colour of the style sheet as it is now, such as "--ink". */
export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
