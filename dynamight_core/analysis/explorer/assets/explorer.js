// The page: its start, and what its menus and buttons do.

import { connectBeside } from "./beside.js";
import { Cloud } from "./cloud.js";
import { compare } from "./compare.js";
import { goTo, inspect, makeSliders, updateLevel } from "./conformations.js";
import { $, attempt, bold, fillMenu, isDark, themeColour } from "./dom.js";
import { savePng, saveSvg, sideBySide } from "./figure.js";
import { connectFilter } from "./filter.js";
import { angstroms, count, typeset } from "./format.js";
import { Landscape } from "./landscape.js";
import { Molecule } from "./molecule.js";
import { describeConclusion, setView, showOverview } from "./overview.js";
import { Pairs } from "./pairs.js";
import { addTable, loadColours, loadColumns, loadPoints, loadRaster, repaintParticles } from "./particles.js";
import { stopPlaying } from "./playback.js";
import { fillPlotMenus, showPlot } from "./plots.js";
import { selectRegion } from "./region.js";
import { ask } from "./requests.js";
import { listenToSave, showResult } from "./result.js";
import { followPath } from "./route.js";
import { chart, HISTOGRAM, page, pointOf } from "./state.js";
import { connectViews } from "./views.js";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  if (!page.landscape?.points) return;
  repaintParticles();
  const views = [page.molecule, page.beside, page.film?.molecule, ...(page.overviewViews ?? [])];
  for (const molecule of views) molecule?.redraw();
}

function markMode() {
  for (const button of document.querySelectorAll(".modes [data-mode]")) {
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", button.dataset.mode === page.landscape.mode);
  }
}

function connectMenus() {
  const onChange = (id, work) => $(id).addEventListener("change", () => attempt(work));
  onChange("plot", () => showPlot($("plot").value));
  ["x-motion", "y-motion"].forEach((id, axis) => {
    onChange(id, () => {
      page.plane[axis] = Number($(id).value);
      return showPlot(page.plot);
    });
  });
  onChange("z-motion", () => {
    page.third = Number($("z-motion").value);
    return showPlot(page.plot);
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

// Write what the panel says of its molecules.
function writeCaptions(context) {
  context.fillStyle = themeColour("--soft");
  context.font = `12px ${themeColour("--sans")}`;
  context.fillText($("molecule-caption").textContent, 8, 16);
  if (!$("beside").hidden) context.fillText($("beside-caption").textContent, 8 + $("molecule").clientWidth, 16);
}

function connectFigures() {
  const name = () => (page.plot === "plane" ? "landscape" : page.plot);
  $("landscape-png").addEventListener("click", () => savePng([...chart().canvases, chart().front], name()));
  $("landscape-svg").addEventListener("click", () =>
    saveSvg(chart().canvases, (context) => chart().drawFront(context), name()),
  );
  const pictures = () => [page.molecule.canvas, ...($("beside").hidden ? [] : [page.beside.canvas])];
  $("molecule-png").addEventListener("click", () => savePng([sideBySide(pictures())], "molecule"));
  $("molecule-svg").addEventListener("click", () =>
    saveSvg([sideBySide(pictures())], (context) => writeCaptions(context), "molecule"),
  );
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
  $("landscape-reset").addEventListener("click", () => (page.plot === "pairs" ? null : chart().resetView()));
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
  fillPlotMenus();
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
  page.cloud = new Cloud($("cloud"), (point) => attempt(() => inspect(point)));
  page.pairs = new Pairs($("pairs"), (first, second) =>
    attempt(() => {
      page.plane = [first, second ?? HISTOGRAM];
      return showPlot("plane");
    }),
  );
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
  await Promise.all([showPlot("plane"), goTo(page.at), loadColumns()]);
  connectBeside();
  await connectViews();
}

globalThis.explorer = page;
attempt(start);
