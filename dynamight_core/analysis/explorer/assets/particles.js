// The landscape's particles, their colours, the background and the legend.

import { BLUES, CATEGORIES, EARTH, GREY, palette, VIRIDIS } from "./colours.js";
import { $, colourBar, colourDot, element, isDark } from "./dom.js";
import { explains } from "./format.js";
import { rasterPixels, rasterTop } from "./raster.js";
import { ask, askLatest } from "./requests.js";
import { axes, chart, group, HISTOGRAM, isHistogram, isUmap, page, where } from "./state.js";

// Free energies beyond this rest on few particles, kT; the report ends there as well.
const MAX_ENERGY = 6;

// Of the plot alone: a plane of motions has a background.
const hasRaster = () => page.plot === "plane" && !isHistogram();

export async function loadPoints(reset = true) {
  $("quantity").parentElement.hidden = !hasRaster();
  if (page.plot === "pairs") {
    await loadPairs();
    return;
  }
  const { landscape, run } = page;
  const [points] = await Promise.all([
    askLatest("points", { plane: axes(), group: group(), where: where() }),
    loadRaster(),
    loadCurve(),
  ]);
  const shown = chart();
  shown.titles = axes().map(axisTitle);
  landscape.grey = axes().some((k) => k > HISTOGRAM && !run.shared.includes(k));
  landscape.isSquare = !isHistogram();
  shown.setPoints(points);
  if (reset) shown.resetView();
  await loadColours();
}

function axisTitle(k) {
  const { run } = page;
  if (isUmap()) return `UMAP ${-k} (no unit)`;
  if (k === HISTOGRAM) return "fraction of particles per Å";
  const isShared = run.shared.includes(k);
  // Three axes are short.
  if (page.plot === "space") return `${isShared ? "motion" : "coordinate"} ${k} (Å rms)`;
  const name = isShared ? `coordinate along motion ${k}` : `coordinate ${k}, not shared`;
  return `${name} (Å rms; ${explains(run.explained[k - 1])})`;
}

async function loadPairs() {
  const { paired, run } = page;
  const found = await askLatest("pairs", { motions: paired, group: group(), where: where() });
  page.pairs.setData(
    found,
    paired,
    paired.map((k) => !run.shared.includes(k)),
  );
  drawLegend();
}

// Ask for the distribution along X, corrected for the errors of the coordinates, where there is a histogram.
async function loadCurve() {
  page.landscape.curve = null;
  // What is not motion has no distribution of its own.
  const isMotion = page.run.counted.includes(page.plane[0]);
  if (isHistogram() && isMotion) page.landscape.curve = await askLatest("distribution", { motion: page.plane[0] });
}

export async function loadColours() {
  const { landscape } = page;
  const shown = chart();
  const column = $("colour").value;
  if (!column) {
    shown.setLevels(new Uint8Array(shown.points.n), landscape.grey ? palette([GREY, GREY], null, GREY) : null);
    landscape.colourKey = null;
  } else {
    const found = await askLatest("colours", { column, group: group(), where: where() });
    shown.setLevels(found.levels, palette(VIRIDIS, found.labels, isDark() ? "#3a444d" : "#d3dade"));
    landscape.colourKey = { column, ...found };
  }
  drawLegend();
}

export async function loadRaster() {
  const quantity = $("quantity").value;
  const found =
    quantity &&
    hasRaster() &&
    (await askLatest("landscape", { plane: page.plane, quantity, group: group(), where: where() }));
  page.landscape.setRaster(found ? paintRaster(found, quantity) : null);
  drawLegend();
}

// Paint raster and legend in the colours of the theme.
export function repaintParticles() {
  const { raster } = page.landscape;
  if (raster) page.landscape.setRaster(paintRaster(raster.found, raster.key.quantity));
  drawLegend();
  for (const view of [page.landscape, page.cloud, page.pairs]) view.redraw();
}

function paintRaster(found, quantity) {
  const [width, height] = found.grid.shape;
  const isEnergy = quantity.startsWith("free");
  const colours = (isEnergy ? EARTH : BLUES)[isDark() ? "dark" : "light"];
  const high = isEnergy ? Math.min(MAX_ENERGY, rasterTop(found.grid)) : rasterTop(found.grid);
  const image = element("canvas", { width, height });
  const pixels = new ImageData(rasterPixels(found.grid, high, colours, isEnergy), width, height);
  image.getContext("2d").putImageData(pixels, 0, 0);
  const unit = isEnergy ? " kT" : quantity === "density" ? " per Å²" : "";
  return { x: found.x, y: found.y, image, key: { quantity, high, colours, unit }, found };
}

function drawLegend() {
  const parts = [];
  const key = page.plot === "pairs" ? null : page.landscape.colourKey;
  if (key?.labels) {
    const dots = key.labels.flatMap((text, i) => [colourDot(CATEGORIES[i % CATEGORIES.length]), text]);
    parts.push(element("div", {}, key.column, ...dots));
  } else if (key) parts.push(colourBar(key.column, VIRIDIS, key.low, key.high));
  const raster = hasRaster() && page.landscape.raster?.key;
  if (raster) parts.push(colourBar(raster.quantity, raster.colours, 0, raster.high, raster.unit));
  if (isHistogram()) {
    const words = page.landscape.curve?.density.length
      ? "line: corrected for coordinate errors"
      : "estimated coordinates";
    parts.push(element("div", { textContent: words }));
  }
  $("landscape-legend").replaceChildren(...parts);
}

// List the columns to colour by.
export async function loadColumns() {
  const groups = await ask("columns");
  const chosen = $("colour").value;
  const made = Object.entries(groups)
    .filter(([, names]) => names.length)
    .map(([label, names]) => {
      const options = names.map((name) => element("option", { value: name, textContent: name }));
      return Object.assign(element("optgroup", {}, ...options), { label });
    });
  const none = () => element("option", { value: "", textContent: "none" });
  $("filter").replaceChildren(none(), ...made.map((part) => part.cloneNode(true)));
  $("filter").value = page.filter?.column ?? "";
  $("colour").replaceChildren(none(), ...made);
  $("colour").value = chosen;
}

// Add the user's CSV, and colour by its first column.
export async function addTable() {
  const file = $("table").files[0];
  if (!file) return;
  $("table").value = "";
  const { added } = await ask("add_table", { name: file.name, text: await file.text() });
  await loadColumns();
  $("colour").value = added[0];
  await loadColours();
}
