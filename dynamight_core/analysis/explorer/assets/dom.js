// Elements of the page, its messages and its theme.

import { gradient } from "./colours.js";
import { sentence } from "./format.js";

export const $ = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
}

export const bold = (text) => element("b", { textContent: text });

// Set the options, [value, text], of a menu.
export function fillMenu(menu, options, chosen) {
  menu.replaceChildren(
    ...options.map(([value, text]) => element("option", { value, textContent: text, selected: value === chosen })),
  );
}

// Return a colour bar with its title and ends.
export function colourBar(title, colours, low, high, unit = "") {
  const box = element("span", { className: "bar" });
  box.style.background = gradient(colours);
  const text = (value) => value.toLocaleString("en", { maximumSignificantDigits: 2 }).replace("-", "−");
  return element("div", {}, `${title}  ${text(low)} `, box, ` ${text(high)}${unit}`);
}

export function colourDot(colour) {
  const dot = element("span", { className: "key" });
  dot.style.background = colour;
  return dot;
}

export const themeColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const isDark = () => document.documentElement.dataset.theme === "dark";

let toastTimer;
function toast(text) {
  $("toast").textContent = sentence(text);
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => {
    $("toast").hidden = true;
  }, 9000);
}

let busy = 0;
function setBusy(change) {
  busy += change;
  document.body.dataset.busy = busy;
}

// Run something that asks the server, and show its error.
export async function attempt(work) {
  setBusy(1);
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message);
  } finally {
    setBusy(-1);
  }
}
