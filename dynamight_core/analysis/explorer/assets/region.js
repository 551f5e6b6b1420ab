// Particles inside a lasso: their number, mean map and subset.

import { showDensity } from "./conformations.js";
import { bold, element } from "./dom.js";
import { count, describe, number, polygonText } from "./format.js";
import { stopPlaying } from "./playback.js";
import { askLatest } from "./requests.js";
import { saveFiles, showResult } from "./result.js";
import { group, half, page } from "./state.js";

export async function selectRegion(corners) {
  stopPlaying();
  const polygon = polygonText(page.plane, corners);
  const found = await askLatest("selection", { polygon, group: group(), half: half() });
  const { particles, averaged, halves, validation } = found;
  const few = averaged < particles ? `${averaged} of ` : "";
  showDensity(found, `mean map of ${few}the ${count(particles)} particles in the region`);
  const all = page.run.halves;
  const note = element("b", { className: "warn" });
  const say = () => {
    note.textContent = remark(invert.checked ? all.map((n, i) => n - halves[i]) : halves);
  };
  const invert = element("input", { type: "checkbox", id: "complement" });
  invert.addEventListener("change", say);
  say();
  const percent = number((100 * particles) / page.run.particles);
  showResult(
    "Region",
    "selection",
    [element("label", {}, invert, " invert selection")],
    [
      [
        bold(`${count(particles)} particles`),
        ` (${percent} %): ${count(halves[0])} in half-set 1, ${count(halves[1])} in half-set 2. ` +
          `Of these, ${count(validation)} are validation particles.`,
      ],
      [note],
      [
        `Mean coordinates: ${describe(found.mean, page.run.mean)}, ${number(found.displacement_rms)} Å rms from the ` +
          `mean conformation. Uncertainty per particle: ${number(found.error)} Å rms.`,
      ],
    ],
    (name) => saveSubset(polygon, invert.checked, name),
  );
}

// Return what to know before a subset with these numbers of particles of the half-sets is saved.
export function remark([first, second]) {
  if (!first && !second) return "The selection is empty: it cannot be saved.";
  if (first && second) return "";
  return `All are of half-set ${first ? 1 : 2}: no second half-map can be made of them, and no FSC.`;
}

function saveSubset(polygon, complement, name) {
  if (group() === "validation")
    throw new Error("validation particles cannot be saved; choose all particles or a half-set");
  const options = { polygon, complement };
  if (group().startsWith("half")) options.half = Number(group().slice(-1));
  return saveFiles("save_selection", options, name);
}
