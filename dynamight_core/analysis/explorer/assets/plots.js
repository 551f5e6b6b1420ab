// Which plot of the particles is shown: a plane, all pairs, three motions, or the UMAP.

import { $, fillMenu } from "./dom.js";
import { loadPoints } from "./particles.js";
import { HISTOGRAM, page } from "./state.js";

// Most motions among which pairs are shown.
const MAX_PAIRED = 5;

// Fill the menus of plot and motions; motions that count come first, and what the half-sets do not share last.
export function fillPlotMenus() {
  const { run } = page;
  const name = (k) => (run.shared.includes(k) ? `motion ${k}` : `coordinate ${k}, not shared by the half-sets`);
  const all = run.explained.map((_, k) => k + 1);
  page.order = [run.counted, run.shared, all].flat().filter((k, i, every) => every.indexOf(k) === i);
  page.paired = page.order.slice(0, MAX_PAIRED);
  const { order } = page;
  const options = order.map((k) => [String(k), name(k)]);
  page.plane = [order[0], run.counted.length > 1 ? order[1] : HISTOGRAM];
  page.third = order[2] ?? order[0];
  const plots = [["plane", "plane"]];
  if (order.length > 1) plots.push(["pairs", "all pairs"]);
  if (order.length > 2) plots.push(["space", "3D"]);
  plots.push(["umap", run.umap ? "UMAP" : "UMAP (not made)"]);
  fillMenu($("plot"), plots, "plane");
  $("plot").lastChild.disabled = !run.umap;
  if (!run.umap) $("plot").lastChild.title = `dynamight analyse ${run.path} --embedding umap`;
  fillMenu($("x-motion"), options, String(page.plane[0]));
  fillMenu($("y-motion"), [[String(HISTOGRAM), "distribution"], ...options], String(page.plane[1]));
  fillMenu($("z-motion"), options, String(page.third));
}

// Show a plot.
export async function showPlot(plot) {
  page.plot = plot;
  // Three motions differ.
  if (plot === "space") {
    if (page.plane[1] === HISTOGRAM) page.plane[1] = page.order.find((k) => k !== page.plane[0]);
    if (page.plane.includes(page.third)) page.third = page.order.find((k) => !page.plane.includes(k));
  }
  $("plot").value = plot;
  $("x-motion").value = String(page.plane[0]);
  $("y-motion").value = String(page.plane[1]);
  $("z-motion").value = String(page.third);
  $("y-motion").firstChild.disabled = plot === "space";
  const isMotions = plot === "plane" || plot === "space";
  for (const id of ["x-motion", "y-motion"]) $(id).parentElement.hidden = !isMotions;
  $("z-motion").parentElement.hidden = plot !== "space";
  $("landscape").hidden = plot === "space" || plot === "pairs";
  $("cloud").hidden = plot !== "space";
  $("pairs").hidden = plot !== "pairs";
  // Regions and paths are drawn in a plane.
  const canDraw = plot === "plane" || plot === "umap";
  for (const button of document.querySelectorAll(".modes [data-mode]")) button.disabled = !canDraw;
  $("colour").parentElement.hidden = plot === "pairs";
  page.landscape.setMode(page.landscape.mode);
  page.landscape.setMark(null);
  page.cloud.setMark(null);
  await loadPoints();
}
