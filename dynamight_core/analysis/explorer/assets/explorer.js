// The page: its start, and what its menus and buttons do.

import { compare } from "./compare.js";
import { goTo, inspect, makeSliders, updateLevel } from "./conformations.js";
import { $, attempt, bold, fillMenu, isDark } from "./dom.js";
import { savePng, saveSvg } from "./figure.js";
import { connectFilter } from "./filter.js";
import { angstroms, count, typeset } from "./format.js";
import { Landscape } from "./landscape.js";
import { Molecule } from "./molecule.js";
import { describeConclusion, setView, showOverview } from "./overview.js";
import { addTable, loadColours, loadColumns, loadPoints, loadRaster, repaintParticles } from "./particles.js";
import { stopPlaying } from "./playback.js";
import { selectRegion } from "./region.js";
import { ask } from "./requests.js";
import { listenToSave, showResult } from "./result.js";
import { followPath } from "./route.js";
import { HISTOGRAM, page, pointOf } from "./state.js";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  if (!page.landscape?.points) return;
  repaintParticles();
  for (const molecule of [page.molecule, page.film?.molecule, ...(page.overviewViews ?? [])]) molecule?.redraw();
}

function markMode() {
  for (const button of document.querySelectorAll(".modes [data-mode]")) {
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", button.dataset.mode === page.landscape.mode);
  }
}

function connectMenus() {
  const onChange = (id, work) => $(id).addEventListener("change", () => attempt(work));
  ["x-motion", "y-motion"].forEach((id, axis) => {
    onChange(id, async () => {
      page.plane[axis] = Number($(id).value);
      page.landscape.setMode(page.landscape.mode);
      page.landscape.setMark(null);
      await loadPoints();
    });
  });
  onChange("group", () => loadPoints(false));
  onChange("colour", loadColours);
  onChange("quantity", loadRaster);
  onChange("table", addTable);
  onChange("half", async () => {
    stopPlaying();
    await goTo(page.at);
  });
}

function chooseMode(mode) {
  stopPlaying();
  page.landscape.setMode(mode);
  markMode();
}

// Keys that act wherever the focus is, but in fields and menus.
const KEYS = {
  i: () => chooseMode("inspect"),
  l: () => chooseMode("lasso"),
  p: () => chooseMode("path"),
  c: () => chooseMode("compare"),
  o: () => setView("overview"),
  e: () => setView("explore"),
  "?": () => $("help").showModal(),
};

function connectKeys() {
  document.addEventListener("keydown", (event) => {
    const work = KEYS[event.key];
    const isField = event.target.matches("input:not([type=range], [type=checkbox]), select, dialog *");
    if (!work || isField || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    work();
  });
}

function connectFigures() {
  const { landscape, molecule } = page;
  $("landscape-png").addEventListener("click", () =>
    savePng([landscape.back, landscape.middle, landscape.front], "landscape"),
  );
  $("landscape-svg").addEventListener("click", () =>
    saveSvg([landscape.back, landscape.middle], (context) => landscape.drawFront(context), "landscape"),
  );
  $("molecule-png").addEventListener("click", () => savePng([molecule.canvas], "molecule"));
}

function connectButtons() {
  for (const part of Object.keys(page.molecule.show))
    $(`show-${part}`).addEventListener("change", (event) => {
      page.molecule.show[part] = event.target.checked;
      page.molecule.redraw();
    });
  for (const button of document.querySelectorAll(".modes [data-mode]"))
    button.addEventListener("click", () => chooseMode(button.dataset.mode));
  for (const button of document.querySelectorAll("button[data-view]"))
    button.addEventListener("click", () => setView(button.dataset.view));
  $("level").addEventListener("input", updateLevel);
  $("landscape-reset").addEventListener("click", () => page.landscape.resetView());
  $("theme").addEventListener("click", () => {
    setTheme(isDark() ? "light" : "dark");
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  });
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("toast").addEventListener("click", () => {
    $("toast").hidden = true;
  });
  listenToSave();
}

function fillMenus() {
  const { run } = page;
  const name = (k) => (run.shared.includes(k) ? `motion ${k}` : `coordinate ${k}, not shared by the half-sets`);
  // Motions that count come first, and what the half-sets do not share last.
  const all = run.explained.map((_, k) => k + 1);
  const order = [run.counted, run.shared, all].flat().filter((k, i, every) => every.indexOf(k) === i);
  const options = order.map((k) => [String(k), name(k)]);
  page.plane = [order[0], run.counted.length > 1 ? order[1] : HISTOGRAM];
  fillMenu($("x-motion"), options, String(page.plane[0]));
  fillMenu($("y-motion"), [[String(HISTOGRAM), "distribution"], ...options], String(page.plane[1]));
  fillMenu(
    $("group"),
    run.groups.map((name) => [name, name]),
    "all",
  );
  fillMenu($("quantity"), [["", "none"], ...run.quantities.map((name) => [name, name])], "density");
  fillMenu($("colour"), [["", "none"]], "");
  if (run.model) {
    $("show-trace-label").hidden = false;
    $("show-trace-label").lastChild.textContent = ` ${run.model}`;
  }
}

function describeRun() {
  const { run } = page;
  document.title = `${run.name} – DynaMight explorer`;
  $("name").textContent = run.name;
  const { motion, lines } = run.conclusion;
  $("unsupported").hidden = motion === "supported";
  $("verdict").textContent = lines[0].replace(/\.$/, "");
  $("verdict").className = motion.replace(" ", "-");
  $("verdict").title = lines.slice(1).map(typeset).join("\n");
  $("numbers").textContent =
    `${count(run.particles)} particles (${run.halves.map(count).join(" + ")}; ${count(run.validation)} for validation)` +
    (run.counted.length ? ` · motion ${angstroms(run.motion)} ± ${angstroms(run.error)} Å rms` : "");
}

function showNotice() {
  const { motion, lines } = page.run.conclusion;
  const parts = motion === "supported" ? [] : [`${lines[0]} What is shown here of motion may be noise.`];
  if (!page.landscape.gl || !page.molecule.gl)
    parts.unshift(
      "WebGL 2 is not available: the landscape shows at most 20,000 particles, and the molecule is drawn as points " +
        "without density. Enable hardware acceleration in the browser's settings, or use another browser.",
    );
  // The overview has the conclusion itself.
  $("notice").classList.toggle("known", parts.length === 1 && motion !== "supported");
  $("notice").textContent = parts.filter(Boolean).join(" ");
  $("notice").hidden = !$("notice").textContent;
}

async function start() {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  setTheme(localStorage.getItem("theme") || preferred);
  page.run = await ask("about");
  describeRun();
  describeConclusion(page.run);
  setView(location.hash === "#explore" ? "explore" : "overview");
  fillMenus();
  page.landscape = new Landscape($("landscape"), {
    place: pointOf,
    inspect: (point) => attempt(() => inspect(point)),
    lasso: (corners) => attempt(() => selectRegion(corners)),
    path: (points) => attempt(() => followPath(points)),
    compare: (first, last) => attempt(() => compare(first, last)),
  });
  page.molecule = new Molecule($("molecule"));
  showNotice();
  connectMenus();
  connectButtons();
  connectFigures();
  connectKeys();
  connectFilter();
  markMode();
  makeSliders();
  page.at = [...page.run.mean];
  page.molecule.setParts(await ask("molecule"));
  showResult(
    "Start here",
    "state",
    [],
    [
      [
        "Click a point in the landscape to show its conformation. Use ",
        bold("Lasso"),
        " to select particles, ",
        bold("Path"),
        " to make a movie, or ",
        bold("Compare"),
        " to see the difference between two points.",
      ],
    ],
    null,
  );
  await showOverview();
  await Promise.all([loadPoints(), goTo(page.at), loadColumns()]);
}

globalThis.explorer = page;
attempt(start);
