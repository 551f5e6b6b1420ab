// A path that plays forwards and backwards.

import { thereAndBack } from "./paths.js";
import { markAt, page } from "./state.js";

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
    markAt(frame.at);
  }, INTERVAL);
}

export function stopPlaying() {
  clearInterval(page.playing);
  page.playing = null;
}
