// The conformation that the molecule shows: at a point, at the sliders, or of a particle.

import { MOTION } from "./colours.js";
import { $, attempt, bold, colourBar, element } from "./dom.js";
import { coordinatesText, describe, number, signed } from "./format.js";
import { stopPlaying } from "./playback.js";
import { askLatest } from "./requests.js";
import { saveFiles, showResult } from "./result.js";
import { group, half, page, pointOf, where, withPoint } from "./state.js";

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
  showMoleculeLegend(displacementBar(answer.displacement_top));
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

// Show the conformation at a point of the landscape, and the particle nearest to it.
export async function inspect(point) {
  stopPlaying();
  const at = withPoint(point);
  const request = { plane: page.plane, at: point, group: group(), where: where() };
  const [answer, near] = await Promise.all([goTo(at), askLatest("nearest", request)]);
  const own = element("button", { type: "button", textContent: "Show its conformation" });
  own.addEventListener("click", () =>
    attempt(async () => {
      page.landscape.setMark(pointOf(near.coordinates));
      const [errors] = await Promise.all([askLatest("uncertainty", { row: near.row }), goTo(near.coordinates)]);
      page.molecule.setErrors(errors.error_at);
      $("molecule-caption").textContent = `particle ${near.row}, uncertainty ${number(errors.error)} Å rms`;
    }),
  );
  const set = near.validation ? "validation" : "training";
  showResult(
    "Conformation",
    "state",
    [],
    [
      [
        `At ${describe(at, page.run.mean)}: `,
        bold(`${number(answer.displacement_rms)} Å rms`),
        ` from the mean conformation, up to ${number(answer.displacement_top)} Å.`,
      ],
      [
        "The nearest particle is ",
        bold(`row ${near.row}`),
        ` (half-set ${near.half}, ${set}). Its motion is ${number(near.motion)} Å rms; the uncertainty is ` +
          `${number(near.error)} Å, and ${number(near.error_around)} Å for particles around it. `,
        own,
      ],
    ],
    (name) => saveFiles("save_states", { at: [coordinatesText(page.at)], half: half() }, name),
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
  const { run, landscape, molecule } = page;
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
      landscape.setMark(pointOf(page.at));
    });
    slider.addEventListener("change", () => attempt(() => inspect(pointOf(page.at))));
    return element("label", {}, `motion ${motion}`, slider, element("output"));
  });
  $("motions").replaceChildren(...sliders);
}
