// What the map gained where the molecule moves: slices, surfaces and FSC, before and after.

import { element } from "./dom.js";
import { surfaceView, volumeOf } from "./film.js";
import { angstroms } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
// Size of the FSC plot, units of its drawing, and its margins.
const PLOT = { width: 300, height: 150, left: 30, right: 8, top: 8, bottom: 30 };
const TICKS = [40, 20, 15, 10, 8, 6, 5, 4, 3.5, 3, 2.5, 2];

export const beforeName = (gain) => (gain.rigid ? "without deformation" : "consensus map");

// Return in words what the map gained: resolutions of the moving part, then of the whole.
export function gainText({ region_resolutions: region, whole_resolutions: whole }) {
  const arrow = ([a, b]) => `${angstroms(a)} → ${angstroms(b)} Å`;
  const parts = [];
  if (region) parts.push(["moving part", arrow(region)]);
  if (whole.length === 2) parts.push(["whole map", arrow(whole)]);
  else if (whole.length === 1) parts.push(["map", `${angstroms(whole[0])} Å`]);
  return parts;
}

function drawSlice(picture) {
  const [height, width] = picture.shape;
  const canvas = element("canvas", { width, height });
  const pixels = new Uint8ClampedArray(4 * width * height);
  picture.forEach((v, i) => {
    pixels.set([v, v, v, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  return canvas;
}

function svg(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

// Return a plot of the FSC before and after.
export function fscPlot(fsc, names) {
  const n = fsc.shape[1];
  const { width, height, left, right, top, bottom } = PLOT;
  const last = fsc[n - 1];
  const x = (v) => (left + (v / last) * (width - left - right)).toFixed(1);
  const y = (v) => (top + (1 - Math.max(v, -0.05)) * ((height - top - bottom) / 1.05)).toFixed(1);
  const plot = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "fsc", role: "img" });
  plot.append(svg("title", {}, `FSC of the half-maps, ${names.join(" and ")}`));
  for (const v of [0, 0.5, 1]) {
    plot.append(svg("line", { x1: left, x2: width - right, y1: y(v), y2: y(v), class: "grid" }));
    plot.append(svg("text", { x: left - 5, y: Number(y(v)) + 4, "text-anchor": "end" }, String(v)));
  }
  plot.append(svg("line", { x1: left, x2: width - right, y1: y(0.143), y2: y(0.143), class: "threshold" }));
  let free = 0;
  for (const tick of TICKS.filter((t) => 1 / t <= last)) {
    if (Number(x(1 / tick)) < free) continue;
    free = Number(x(1 / tick)) + 26;
    plot.append(svg("text", { x: x(1 / tick), y: height - bottom + 14, "text-anchor": "middle" }, String(tick)));
  }
  plot.append(svg("text", { x: (width + left) / 2, y: height - 3, "text-anchor": "middle" }, "resolution (Å)"));
  [1, 2].forEach((row) => {
    const line = Array.from({ length: n }, (_, i) => `${x(fsc[i])},${y(fsc[row * n + i])}`).join(" ");
    plot.append(svg("polyline", { points: line, class: row === 1 ? "before" : "after" }));
  });
  return plot;
}

// Fill a box with the maps of the moving part, before and after, side by side; returns its views.
export function showGain(box, data) {
  const { gain } = data;
  const names = [`before: ${beforeName(gain)}`, "after: motion corrected"];
  const columns = ["before", "after"].map((part, i) => {
    const view = element("div", { className: "view" });
    const column = element(
      "figure",
      {},
      element("figcaption", { className: part, textContent: names[i] }),
      drawSlice(data[`slice_${part}`]),
      view,
    );
    return { part, view, column };
  });
  const pair = element("div", { className: "pair" }, ...columns.map(({ column }) => column));
  const numbers = gainText(gain).map(([name, text]) => element("div", {}, element("b", { textContent: text }), name));
  const where = gain.moving ? "FSC in the moving part" : "FSC of the map";
  const plot = data.fsc.shape[1] ? [element("div", { className: "curve" }, where, fscPlot(data.fsc, names))] : [];
  box.replaceChildren(
    pair,
    element("div", { className: "figures" }, element("div", { className: "big" }, ...numbers), ...plot),
  );
  const views = columns.map(({ part, view }) => {
    const label = `The moving part ${part}, as a surface`;
    const molecule = surfaceView(view, { points: corners(data[part], gain), view: data.view }, label);
    const plain = part === "before" ? [0.78, 0.55, 0.42] : [0.3, 0.58, 0.68];
    molecule.setSurfaces([volumeOf(data[part], gain, { plain })]);
    return molecule;
  });
  // Both turn together.
  for (const [own, other] of [views, [...views].reverse()])
    own.onTurn = () => {
      other.rotation = own.rotation;
      other.zoom = own.zoom;
      other.redraw();
    };
  return views;
}

// Return the two corners of a volume, which its view is about.
function corners(volume, { first, spacing }) {
  const [d, h, w] = volume.shape;
  return Float32Array.from([...first, ...[w, h, d].map((n, a) => first[a] + n * spacing)]);
}
