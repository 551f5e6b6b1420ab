// What the page shows now; `explorer` in the browser's console.

import { $ } from "./dom.js";

// In place of the motion along Y: particles stand in the shape of their distribution along X.
export const HISTOGRAM = 0;
// In place of motions: the plane of the UMAP.
export const UMAP = [-1, -2];
export const isUmap = () => page.plot === "umap";
export const isHistogram = () => page.plot === "plane" && page.plane[1] === HISTOGRAM;

export const page = {
  // The answer of the action `about`.
  run: null,
  landscape: null,
  molecule: null,
  // Views of particles in three dimensions and in all pairs of motions, and of a map beside the model, or null.
  cloud: null,
  pairs: null,
  beside: null,
  // What is plotted: "plane", "pairs", "space" or "umap".
  plot: "plane",
  // Motions, from 1, along X and Y of the landscape, and along Z in three dimensions.
  plane: [1, 2],
  third: 3,
  // All motions in the order of the menus, and those whose pairs are shown.
  order: [],
  paired: [],
  // Coordinates of the conformation that is shown, Å rms.
  at: [],
  // { column, low, high, own }: particles outside are not shown; `own` columns are of the run. Or null.
  filter: null,
  // Timer of the path that plays, or null.
  playing: null,
};

// The range of a column that the shown particles are in, as the option --where takes it, or nothing.
export const where = () => {
  const { filter } = page;
  return filter ? `${filter.column}:${filter.low.toPrecision(4)}:${filter.high.toPrecision(4)}` : "";
};

export const group = () => $("group").value;
export const half = () => $("half").value;

// Return the motions along the axes of the plot.
export const axes = () => (isUmap() ? UMAP : page.plot === "space" ? [...page.plane, page.third] : page.plane);

// Return the view of the particles that is shown.
export const chart = () => ({ pairs: page.pairs, space: page.cloud })[page.plot] ?? page.landscape;

// Return coordinates whose values along the axes are those of a point; the axes of a UMAP are no motions.
export function withPoint(point) {
  const at = [...page.at];
  axes().forEach((k, i) => {
    if (k > HISTOGRAM) at[k - 1] = point[i];
  });
  return at;
}

// Return the point of coordinates along the axes, or null where there is none.
export const pointOf = (at) => (isUmap() ? null : axes().map((k) => (k === HISTOGRAM ? 0 : at[k - 1])));

// Mark the point of coordinates in the plot.
export const markAt = (at) => (page.plot === "space" ? page.cloud : page.landscape).setMark(pointOf(at));
