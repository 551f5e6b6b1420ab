// What the page shows now; `explorer` in the browser's console.

import { $ } from "./dom.js";

// In place of the motion along Y: particles stand in the shape of their distribution along X.
export const HISTOGRAM = 0;
export const isHistogram = () => page.plane[1] === HISTOGRAM;

export const page = {
  // The answer of the action `about`.
  run: null,
  landscape: null,
  molecule: null,
  // Motions, from 1, along X and Y of the landscape.
  plane: [1, 2],
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

// Return coordinates whose values in the plane are those of a point.
export function withPoint(point) {
  const at = [...page.at];
  page.plane.forEach((k, i) => {
    if (k !== HISTOGRAM) at[k - 1] = point[i];
  });
  return at;
}

// Return the point of coordinates in the plane.
export const pointOf = (at) => page.plane.map((k) => (k === HISTOGRAM ? 0 : at[k - 1]));
