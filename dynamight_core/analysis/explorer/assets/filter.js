// A filter of the particles by the range of a column.

import { $, attempt } from "./dom.js";
import { count, number } from "./format.js";
import { loadPoints } from "./particles.js";
import { ask } from "./requests.js";
import { chart, page } from "./state.js";

let extent = null;

// Choose the column, with all of its range.
async function chooseColumn() {
  const column = $("filter").value;
  page.filter = null;
  extent = column ? await ask("extent", { column }) : null;
  $("filter-range").hidden = !column;
  if (extent)
    for (const [id, value] of [
      ["filter-low", extent.low],
      ["filter-high", extent.high],
    ])
      Object.assign($(id), { min: extent.low, max: extent.high, value });
  await showFiltered();
}

// Show a filter that was saved, or none.
export async function showFilter(filter) {
  $("filter").value = filter?.column ?? "";
  await chooseColumn();
  if (!filter) return;
  [$("filter-low").value, $("filter-high").value] = [filter.low, filter.high];
  await showFiltered();
}

async function showFiltered() {
  if (extent) {
    const [low, high] = [Number($("filter-low").value), Number($("filter-high").value)].sort((a, b) => a - b);
    // The ends are rounded when they are sent: at the ends of the range nothing is lost.
    const room = 1e-3 * (extent.high - extent.low || 1);
    page.filter = { column: $("filter").value, low: low - room, high: high + room, own: extent.own };
    $("filter-text").textContent = `${number(low)} to ${number(high)}`;
  }
  await loadPoints(false);
  // Of pairs there is no number.
  if (extent && page.plot !== "pairs") $("filter-text").textContent += `: ${count(chart().points.total)}`;
}

export function connectFilter() {
  $("filter").addEventListener("change", () => attempt(chooseColumn));
  for (const id of ["filter-low", "filter-high"]) $(id).addEventListener("change", () => attempt(showFiltered));
}
