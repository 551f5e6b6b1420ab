// Particles inside a lasso: their number, mean map and subset.

import { showDensity } from "./conformations.js";
import { attempt, bold, element } from "./dom.js";
import { angstroms, count, describe, number, polygonText, rangeText, remark } from "./format.js";
import { showMontage } from "./montage.js";
import { stopPlaying } from "./playback.js";
import { askLatest } from "./requests.js";
import { saveFiles, showResult } from "./result.js";
import { axes, group, half, isHistogram, page, where } from "./state.js";

export async function selectRegion(corners) {
  stopPlaying();
  const polygon = polygonText(axes(), corners);
  const found = await askLatest("selection", { polygon, group: group(), half: half(), where: where() });
  const { particles, averaged, halves, validation } = found;
  const few = averaged < particles ? `${averaged} of ` : "";
  showDensity(found, `mean map of ${few}the ${count(particles)} particles in the region`);
  const all = page.run.halves;
  const note = element("b", { className: "warn" });
  const say = () => {
    note.textContent = remark(invert.checked ? all.map((n, i) => n - halves[i]) : halves);
  };
  const invert = element("input", { type: "checkbox", id: "complement" });
  const images = element("button", { type: "button", textContent: "Particle images" });
  const request = { polygon, group: group(), where: where() };
  images.addEventListener("click", () => attempt(async () => showMontage(await askLatest("montage", request))));
  invert.addEventListener("change", say);
  say();
  const percent = number((100 * particles) / page.run.particles);
  showResult(
    "Region",
    "selection",
    [element("label", {}, invert, " invert selection"), images],
    [
      [
        bold(`${count(particles)} particles`),
        ` (${percent} %): ${count(halves[0])} in half-set 1, ${count(halves[1])} in half-set 2. ` +
          `Of these, ${count(validation)} are validation particles.`,
      ],
      [note],
      [
        `Mean coordinates: ${describe(found.mean, page.run.mean)}, ${angstroms(found.displacement_rms)} Å rms from the ` +
          `mean conformation. Uncertainty per particle: ${angstroms(found.error)} Å rms.`,
      ],
    ],
    // A range is shorter to read than the square that has it on its diagonal.
    (name) =>
      saveSubset(isHistogram() ? { along: [rangeText(page.plane[0], corners)] } : { polygon }, invert.checked, name),
  );
}

function saveSubset(region, complement, name) {
  if (group() === "validation")
    throw new Error("validation particles cannot be saved; choose all particles or a half-set");
  const options = { ...region, complement };
  if (page.filter && !page.filter.own)
    throw new Error("a filter by your own table cannot be saved; remove it, or filter by a column of this run");
  if (page.filter) options.where = [where()];
  if (group().startsWith("half")) options.half = Number(group().slice(-1));
  return saveFiles("save_selection", options, name);
}
