// The page: its theme, its first screen, and figures that are drawn when they come into sight.

import { unpack } from "../../explorer/assets/answer.js";
import { $, isDark } from "../../explorer/assets/dom.js";
import { Film } from "../../explorer/assets/film.js";
import { showGain } from "../../explorer/assets/gain.js";
import { showStates } from "../../explorer/assets/strip.js";

const CONFIG = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = isDark() ? "Light" : "Dark";
  for (const molecule of views) molecule.redraw();
}

// Draw a figure once, from the JSON beside it.
function drawFigure(box) {
  if (box.dataset.drawn) return;
  box.dataset.drawn = "yes";
  const { data, layout } = JSON.parse(document.querySelector(`[data-figure="${box.id}"]`).textContent);
  Plotly.newPlot(box, data, layout, CONFIG);
}

function showFirst() {
  const text = $("overview-data").textContent;
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const data = unpack(bytes.buffer);
  if (!$("film")) return;
  const film = new Film({ view: $("film"), legend: $("film-legend"), controls: $("film-controls") }, data);
  views.push(film.molecule);
  if ($("gain")) views.push(...showGain($("gain"), data));
  if ($("states")) showStates($("states"), film);
  globalThis.report = { film, views };
}

const views = [];
setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
showFirst();
// A link to a section opens it.
const openTarget = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target?.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();
addEventListener("load", () => {
  const figures = document.querySelectorAll(".plot");
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) drawFigure(target);
    },
    { rootMargin: "200px" },
  );
  for (const figure of figures) watcher.observe(figure);
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const figure of figures) drawFigure(figure);
  });
});
