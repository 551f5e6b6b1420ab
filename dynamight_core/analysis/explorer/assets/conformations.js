// The conformation that the molecule shows: at a point, at the sliders, or of a particle.

import { MOTION } from "./colours.js";
import { $, attempt, bold, colourBar, element } from "./dom.js";
import { angstroms, coordinatesText, describe, signed } from "./format.js";
import { stopPlaying } from "./playback.js";
import { ask, askLatest } from "./requests.js";
import { methodMenu, saveFiles, showResult } from "./result.js";
import { axes, group, half, isUmap, markAt, page, pointOf, where, withPoint } from "./state.js";

// Largest displacement that has no colour bar, Å.
const MIN_SHOWN = 0.05;
let shownVolumes = [];
let isLevelSet = false;

// Contour level of a single density, and of both parts of a difference, 0 to 255.
export const contourLevel = () => 2.55 * Number($("level").value);
export const differenceLevel = () => Math.max(8, 0.55 * contourLevel());

// Return an answer's density as a surface coloured by displacement.
export function surfaceOf(answer, more = {}) {
  return {
    volume: answer.density,
    level: contourLevel(),
    spacing: answer.spacing,
    first: answer.first,
    values: answer.displacement,
    coloursShape: answer.displacement.shape,
    plainWeight: 0,
    opacity: 1,
    ...more,
  };
}

export function showVolumes(volumes) {
  shownVolumes = volumes;
  page.molecule.setSurfaces(volumes);
}

export function updateLevel() {
  if (page.playing) return;
  showVolumes(shownVolumes.map((v) => ({ ...v, level: v.pair ? differenceLevel() : contourLevel() })));
}

export const showMoleculeLegend = (...lines) => $("molecule-legend").replaceChildren(...lines);
export const displacementBar = (top) => colourBar("displacement from the mean", MOTION, 0, top, " Å");

export function showDensity(answer, caption) {
  $("molecule-caption").textContent = caption;
  showVolumes([surfaceOf(answer)]);
  page.molecule.setCoordinates(answer.at);
  // At the mean nothing is displaced.
  showMoleculeLegend(...(answer.displacement_top > MIN_SHOWN ? [displacementBar(answer.displacement_top)] : []));
}

// Show the conformation at coordinates; returns the server's answer.
export async function goTo(at) {
  page.at = at;
  page.molecule.setErrors();
  setSliders();
  page.molecule.setCoordinates(at);
  const answer = await askLatest("state", { at, half: half() });
  if (!isLevelSet) {
    $("level").value = Math.round(100 * answer.level);
    isLevelSet = true;
  }
  showDensity(answer, `conformation at ${describe(at, page.run.mean)}`);
  return answer;
}

const nearest = (point) => ask("nearest", { plane: axes(), at: point, group: group(), where: where() });

// Return the coordinates of points of the plot; in a UMAP, those of the nearest particles.
export const coordinatesOf = (points) =>
  Promise.all(points.map(async (point) => (isUmap() ? (await nearest(point)).coordinates : withPoint(point))));

// Show the conformation at a point of the plot, and the particle nearest to it.
export async function inspect(point) {
  stopPlaying();
  const [[at], near] = await Promise.all([coordinatesOf([point]), nearest(point)]);
  const answer = await goTo(at);
  const own = element("button", { type: "button", textContent: "Show its conformation" });
  own.addEventListener("click", () =>
    attempt(async () => {
      markAt(near.coordinates);
      const [errors] = await Promise.all([askLatest("uncertainty", { row: near.row }), goTo(near.coordinates)]);
      page.molecule.setErrors(errors.error_at);
      $("molecule-caption").textContent = `particle ${near.row}, uncertainty ${angstroms(errors.error)} Å rms`;
    }),
  );
  const set = near.validation ? "validation" : "training";
  const { menu, label } = methodMenu();
  showResult(
    "Conformation",
    "state",
    [label],
    [
      [
        `At ${describe(at, page.run.mean)}: `,
        bold(`${angstroms(answer.displacement_rms)} Å rms`),
        ` from the mean conformation, up to ${angstroms(answer.displacement_top)} Å.`,
      ],
      [
        "The nearest particle is ",
        bold(`row ${near.row}`),
        ` (half-set ${near.half}, ${set}). Its motion is ${angstroms(near.motion)} Å rms; the uncertainty is ` +
          `${angstroms(near.error)} Å, and ${angstroms(near.error_around)} Å for particles around it. `,
        own,
      ],
    ],
    (name) => saveFiles("save_states", { at: [coordinatesText(page.at)], half: half(), method: menu.value }, name),
  );
}

const sliderText = (value) => `${signed(value)} Å`;

function setSliders() {
  document.querySelectorAll("#motions input").forEach((input) => {
    const value = page.at[Number(input.dataset.motion) - 1];
    input.value = value;
    input.nextElementSibling.textContent = sliderText(value);
  });
}

// Make a slider for each motion that counts, or that both half-sets find where none does.
export function makeSliders() {
  const { run, molecule } = page;
  const sliders = (run.counted.length ? run.counted : run.shared).map((motion) => {
    const k = motion - 1;
    const range = { type: "range", min: run.low[k], max: run.high[k], step: "any", value: run.mean[k] };
    const slider = element("input", range);
    slider.dataset.motion = motion;
    slider.addEventListener("input", () => {
      stopPlaying();
      page.at[k] = Number(slider.value);
      slider.nextElementSibling.textContent = sliderText(page.at[k]);
      molecule.setCoordinates(page.at);
      markAt(page.at);
    });
    slider.addEventListener("change", () => attempt(() => (isUmap() ? goTo(page.at) : inspect(pointOf(page.at)))));
    return element("label", {}, `motion ${motion}`, slider, element("output"));
  });
  $("motions").replaceChildren(...sliders);
}
