// A path through the landscape: the molecule moves along it, and it becomes maps and a movie.

import { coordinatesOf, displacementBar, showDensity, showMoleculeLegend, surfaceOf } from "./conformations.js";
import { $, bold, element } from "./dom.js";
import { angstroms, coordinatesText } from "./format.js";
import { makeSurface } from "./meshes.js";
import { alongPath, pathLength } from "./paths.js";
import { play, stopPlaying } from "./playback.js";
import { askLatest } from "./requests.js";
import { methodMenu, saveFiles, showResult } from "./result.js";
import { half, page } from "./state.js";

// Frames that are shown; saved paths have as many states as the user asks for.
const N_FRAMES = 14;

export async function followPath(points) {
  stopPlaying();
  const corners = await coordinatesOf(points);
  const frames = [];
  const n = element("input", { type: "number", min: 2, max: 60, value: 10, id: "path-n", style: "width: 58px" });
  const button = element("button", { type: "button", textContent: "Pause" });
  button.addEventListener("click", () => {
    if (page.playing) stopPlaying();
    else play(frames);
    button.textContent = page.playing ? "Pause" : "Play";
  });
  const { menu, label } = methodMenu();
  const parts = page.run.model ? "The density, arrows and atomic model" : "The density and arrows";
  showResult(
    "Path",
    "path",
    [element("label", {}, "states ", n), label, button],
    [
      [
        `${corners.length} points, `,
        bold(`${angstroms(pathLength(corners))} Å rms`),
        ` long. ${parts} move along the path and back.`,
      ],
      ["Save writes maps of evenly spaced states, a table and a movie."],
    ],
    (name) =>
      saveFiles(
        "save_states",
        { through: corners.map(coordinatesText), n_states: Number(n.value), half: half(), method: menu.value },
        name,
      ),
  );
  await loadFrames(frames, alongPath(corners, N_FRAMES));
  play(frames);
}

// Fill frames with the conformations at coordinates; all have the same colours.
async function loadFrames(frames, steps) {
  const caption = "moving along the path";
  for (const at of steps) {
    frames.push({ at, answer: await askLatest("state", { at, half: half() }) });
    if (frames.length === 1) showDensity(frames[0].answer, caption);
  }
  $("molecule-caption").textContent = caption;
  const top = Math.max(...frames.map((frame) => frame.answer.displacement_top));
  showMoleculeLegend(displacementBar(top));
  for (const frame of frames) {
    const values = frame.answer.displacement.map((v) => (v * frame.answer.displacement_top) / top);
    frame.surface = page.molecule.gl ? makeSurface(surfaceOf(frame.answer, { values })) : null;
  }
}
