// Colour scales, and colours between their stops.

export const VIRIDIS = [
  "#440154",
  "#482878",
  "#3e4a89",
  "#31688e",
  "#26828e",
  "#1f9e89",
  "#35b779",
  "#6ece58",
  "#b5de2b",
  "#fde725",
];
export const BLUES = {
  light: ["#eef4f8", "#c9deea", "#94c0d8", "#5a9cc0", "#2f78a3", "#14507a"],
  dark: ["#18242e", "#1f3f54", "#28607e", "#3886a6", "#63b2ca", "#b7e2ec"],
};
export const EARTH = {
  light: ["#fbf3e2", "#efd9a9", "#d9b274", "#b8814e", "#8a5238", "#572c26"],
  dark: ["#f2e2bd", "#d6b578", "#a97e4d", "#77503a", "#4a332d", "#241d20"],
};
// Displacement: parts at rest are grey.
export const MOTION = ["#9fadb6", "#7aaab8", "#3f9f9a", "#6db65c", "#d9c832", "#f08a2c"];
export const CATEGORIES = [
  "#2a7f9e",
  "#cf6a3f",
  "#6a9a3f",
  "#8a6bb1",
  "#c49a2c",
  "#c0567e",
  "#4a9d8f",
  "#8d6e57",
  "#5a79c7",
  "#a3a33a",
  "#7f8b94",
  "#b24a3c",
];
export const PLAIN_POINT = "#57707f";
// Of coordinates that the half-sets do not share.
export const GREY = "#9aa5ad";

// Return [r, g, b], 0 to 255, of "#rrggbb".
export const rgb = (hex) => [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));

// Return [r, g, b] at t from 0 to 1 along colours.
export function blend(colours, t) {
  const place = Math.min(Math.max(t, 0), 1) * (colours.length - 1);
  const i = Math.min(Math.floor(place), colours.length - 2);
  const [a, b] = [rgb(colours[i]), rgb(colours[i + 1])];
  return a.map((v, k) => v + (b[k] - v) * (place - i));
}

// Return RGBA of 256 levels: a scale, or one colour per category; level 255 means a missing value.
export function palette(colours, categories, missing) {
  const out = new Uint8Array(1024);
  for (let i = 0; i < 255; i++) {
    const colour = categories ? rgb(CATEGORIES[i % CATEGORIES.length]) : blend(colours, i / 254);
    out.set([...colour, 255], 4 * i);
  }
  out.set([...rgb(missing), 255], 1020);
  return out;
}

// Return a CSS gradient.
export const gradient = (colours) => `linear-gradient(90deg, ${colours.join(", ")})`;
