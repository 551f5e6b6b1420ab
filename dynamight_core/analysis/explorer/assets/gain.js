// What the map gained where the molecule moves: slices, surfaces and FSC, before and after.

import { element } from "./dom.js";
import { surfaceView, volumeOf } from "./film.js";
import { angstroms } from "./format.js";
import { makeSurface } from "./meshes.js";

// Size of the FSC plot, units of its drawing, and its margins.
const PLOT = { width: 300, height: 150, left: 30, right: 8, top: 8, bottom: 30 };
// The moving part is seen from nearer than its box asks.
const CLOSE = 1.9;
const PARTS = "Pictures: the part that moves most. Numbers: all that moves.";
const TICKS = [40, 20, 15, 10, 8, 6, 5, 4, 3.5, 3, 2.5, 2];

// Return in words what the map gained: resolutions of the moving part, then of the whole. A gain of the FSC within two
// standard errors counts as no gain, whatever the resolutions.
export function gainText({ region_resolutions: region, whole_resolutions: whole, fsc_gain: gain }) {
  const arrow = ([a, b]) => `${angstroms(a)} → ${angstroms(b)} Å`;
  const parts = [];
  const isNone = gain && Math.abs(gain[0]) <= 2 * gain[1];
  if (region) parts.push([isNone ? "moving part, within the error" : "moving part", arrow(region)]);
  if (whole.length === 2) parts.push(["whole map", arrow(whole)]);
  else if (whole.length === 1) parts.push(["map", `${angstroms(whole[0])} Å`]);
  return parts;
}

// Return a canvas with a picture of bytes.
export function drawPicture(picture) {
  const [height, width] = picture.shape;
  const canvas = element("canvas", { width, height });
  const pixels = new Uint8ClampedArray(4 * width * height);
  picture.forEach((v, i) => {
    pixels.set([v, v, v, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
  return canvas;
}

// Return a plot of the FSC before and after.
export function fscPlot(fsc, names) {
  const n = fsc.shape[1];
  const { width, height, left, right, top, bottom } = PLOT;
  const last = fsc[n - 1];
  const x = (v) => (left + (v / last) * (width - left - right)).toFixed(1);
  const y = (v) => (top + (1 - Math.max(v, -0.05)) * ((height - top - bottom) / 1.05)).toFixed(1);
  const text = (px, py, anchor, words) => `<text x="${px}" y="${py}" text-anchor="${anchor}">${words}</text>`;
  const rule = (v, name) => `<line class="${name}" x1="${left}" x2="${width - right}" y1="${y(v)}" y2="${y(v)}"/>`;
  const parts = [0, 0.5, 1].flatMap((v) => [rule(v, "grid"), text(left - 5, Number(y(v)) + 4, "end", v)]);
  parts.push(rule(0.143, "threshold"));
  let free = 0;
  for (const tick of TICKS.filter((t) => 1 / t <= last)) {
    const px = Number(x(1 / tick));
    if (px < free) continue;
    free = px + 26;
    parts.push(text(px, height - bottom + 14, "middle", tick));
  }
  parts.push(text((width + left) / 2, height - 3, "middle", "resolution (Å)"));
  for (const [row, name] of ["before", "after"].entries()) {
    const line = Array.from({ length: n }, (_, i) => `${x(fsc[i])},${y(fsc[(row + 1) * n + i])}`).join(" ");
    parts.push(`<polyline class="${name}" points="${line}"/>`);
  }
  const box = element("div");
  box.innerHTML = `<svg class="fsc" viewBox="0 0 ${width} ${height}" role="img">${parts.join("")}</svg>`;
  box.firstChild.setAttribute("aria-label", `FSC of the half-maps, ${names.join(" and ")}`);
  return box;
}

// Fill a box with the maps of the moving part, before and after, side by side; returns its views.
export function showGain(box, data) {
  const { gain } = data;
  const names = [gain.rigid ? "before correction" : "before: consensus", "after correction"];
  const columns = ["before", "after"].map((part, i) => {
    const view = element("div", { className: "view" });
    const column = element(
      "figure",
      {},
      element("figcaption", { className: part, textContent: names[i] }),
      drawPicture(data[`slice_${part}`]),
      view,
    );
    return { part, view, column };
  });
  const pair = element("div", { className: "pair" }, ...columns.map(({ column }) => column));
  const numbers = gainText(gain).map(([name, text]) => element("div", {}, element("b", { textContent: text }), name));
  const where = gain.moving ? "FSC in the moving part" : "FSC of the map";
  const parts = data.parts > 1 ? [element("div", { className: "curve", textContent: PARTS })] : [];
  const plot = data.fsc.shape[1] ? [element("div", { className: "curve" }, where, fscPlot(data.fsc, names))] : [];
  box.replaceChildren(
    pair,
    ...parts,
    element("div", { className: "figures" }, element("div", { className: "big" }, ...numbers), ...plot),
  );
  const views = columns.map(({ part, view }) => {
    const label = `The moving part ${part}, as a surface`;
    const molecule = surfaceView(view, { points: corners(data[part], gain), view: data.view }, label);
    const plain = part === "before" ? [0.78, 0.55, 0.42] : [0.3, 0.58, 0.68];
    molecule.zoom = CLOSE;
    molecule.showMeshes([makeSurface(volumeOf(data[part], gain, { plain }))]);
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
