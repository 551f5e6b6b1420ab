// A path that plays forwards and backwards.

import { thereAndBack } from "./paths.js";
import { page, pointOf } from "./state.js";

// Time between frames, ms.
const INTERVAL = 110;

// Play frames { at, surface } until `stopPlaying`.
export function play(frames) {
  const order = thereAndBack(frames.length);
  let next = 0;
  page.playing = setInterval(() => {
    const frame = frames[order[next++ % order.length]];
    page.molecule.showMeshes(frame.surface ? [frame.surface] : []);
    page.molecule.setCoordinates(frame.at);
    page.landscape.setMark(pointOf(frame.at));
  }, INTERVAL);
}

export function stopPlaying() {
  clearInterval(page.playing);
  page.playing = null;
}
