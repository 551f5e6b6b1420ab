// The page: its start, and what its menus and buttons do.

import { compare } from "./compare.js";
import { goTo, inspect, makeSliders, updateLevel } from "./conformations.js";
import { $, attempt, bold, fillMenu, isDark } from "./dom.js";
import { count, number, typeset } from "./format.js";
import { Landscape } from "./landscape.js";
import { Molecule } from "./molecule.js";
import { addTable, loadColours, loadColumns, loadPoints, loadRaster, repaintParticles } from "./particles.js";
import { stopPlaying } from "./playback.js";
import { selectRegion } from "./region.js";
import { ask } from "./requests.js";
import { listenToSave, showResult } from "./result.js";
import { followPath } from "./route.js";
import { page } from "./state.js";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  if (!page.landscape?.points) return;
  repaintParticles();
  page.molecule.redraw();
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

function connectButtons() {
  for (const part of Object.keys(page.molecule.show))
    $(`show-${part}`).addEventListener("change", (event) => {
      page.molecule.show[part] = event.target.checked;
      page.molecule.redraw();
    });
  for (const button of document.querySelectorAll(".modes [data-mode]"))
    button.addEventListener("click", () => {
      stopPlaying();
      page.landscape.setMode(button.dataset.mode);
      markMode();
    });
  $("level").addEventListener("input", updateLevel);
  $("landscape-reset").addEventListener("click", () => page.landscape.resetView());
  $("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  $("help-button").addEventListener("click", () => $("help").showModal());
  $("toast").addEventListener("click", () => {
    $("toast").hidden = true;
  });
  listenToSave();
}

function fillMenus() {
  const { run } = page;
  const name = (k) => (run.shared.includes(k) ? `motion ${k}` : `coordinate ${k}, not shared by the half-sets`);
  const motions = run.explained.map((_, k) => [String(k + 1), name(k + 1)]);
  // Motions that both half-sets find come first.
  const order = [...run.shared, ...motions.map(([k]) => Number(k)).filter((k) => !run.shared.includes(k))];
  page.plane = order.length > 1 ? order.slice(0, 2) : [1, 1];
  fillMenu($("x-motion"), motions, String(page.plane[0]));
  fillMenu($("y-motion"), motions, String(page.plane[1]));
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
    ` · motion ${number(run.motion)} Å rms, uncertainty ${number(run.error)} Å`;
}

function showNotice() {
  const { motion, lines } = page.run.conclusion;
  const parts = motion === "supported" ? [] : [`${lines[0]} What is shown here of motion may be noise.`];
  if (!page.landscape.gl || !page.molecule.gl)
    parts.unshift(
      "WebGL 2 is not available: the landscape shows at most 20,000 particles, and the molecule is drawn as points " +
        "without density. Enable hardware acceleration in the browser's settings, or use another browser.",
    );
  $("notice").textContent = parts.filter(Boolean).join(" ");
  $("notice").hidden = !$("notice").textContent;
}

async function start() {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  setTheme(localStorage.getItem("theme") || preferred);
  page.run = await ask("about");
  describeRun();
  fillMenus();
  page.landscape = new Landscape($("landscape"), {
    inspect: (point) => attempt(() => inspect(point)),
    lasso: (corners) => attempt(() => selectRegion(corners)),
    path: (points) => attempt(() => followPath(points)),
    compare: (first, last) => attempt(() => compare(first, last)),
  });
  page.molecule = new Molecule($("molecule"));
  showNotice();
  connectMenus();
  connectButtons();
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
      ...page.run.conclusion.lines.map((line) => [typeset(line)]),
    ],
    null,
  );
  await Promise.all([loadPoints(), goTo(page.at), loadColumns()]);
}

globalThis.explorer = page;
attempt(start);
