// The difference between the conformations at two points, A and B.

import { coordinatesOf, differenceLevel, showMoleculeLegend, showVolumes, surfaceOf } from "./conformations.js";
import { $, bold, colourDot, element, isDark } from "./dom.js";
import { angstroms, coordinatesText, describe } from "./format.js";
import { stopPlaying } from "./playback.js";
import { askLatest } from "./requests.js";
import { saveFiles, showResult } from "./result.js";
import { half, page } from "./state.js";

const GAIN = [0.16, 0.47, 0.75];
const LOSS = [0.77, 0.27, 0.2];
// A projector loses dark surfaces: they are brighter and denser there.
const FIRST = {
  light: { plain: [0.62, 0.66, 0.7], plainWeight: 1, opacity: 0.4 },
  dark: { plain: [0.88, 0.92, 0.96], plainWeight: 1, opacity: 0.6 },
};

export async function compare(first, last) {
  stopPlaying();
  const [a, b] = await coordinatesOf([first, last]);
  const found = await askLatest("difference", { first: a, last: b, half: half() });
  $("molecule-caption").textContent = "difference between A and B";
  page.molecule.setCoordinates(found.at);
  const part = (volume, plain) =>
    surfaceOf(found, { volume, level: differenceLevel(), plain, plainWeight: 1, pair: true });
  showVolumes([part(found.gain, GAIN), part(found.loss, LOSS), surfaceOf(found, FIRST[isDark() ? "dark" : "light"])]);
  const key = (colour, text) => element("div", {}, colourDot(colour), text);
  showMoleculeLegend(key("#2978bf", "more in B"), key("#c44533", "less in B"), key("#9ea8b3", "A"));
  showResult(
    "Difference",
    "difference",
    [],
    [
      [`A: ${describe(a, page.run.mean)}. B: ${describe(b, page.run.mean)}.`],
      [
        "Displacement between A and B: ",
        bold(`${angstroms(found.displacement_rms)} Å rms`),
        `, up to ${angstroms(found.displacement_max)} Å.`,
      ],
    ],
    (name) => saveFiles("save_states", { at: [a, b].map(coordinatesText), difference: true, half: half() }, name),
  );
}
