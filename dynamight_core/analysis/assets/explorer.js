"use strict";
// The page: what is chosen, what is asked, what is shown.

const $ = (id) => document.getElementById(id);
const state = { plane: [1, 2], at: [], polygon: null, path: null, playing: null };
let run, landscape, molecule;

// ---------------------------------------------------------------- asking

let busy = 0;
function setBusy(change) {
  busy += change;
  document.body.dataset.busy = busy;
}
// Run something that asks the server, and say its error.
async function attempt(work) {
  setBusy(1);
  try {
    return await work();
  } catch (error) {
    if (error.name !== "AbortError") toast(error.message);
  } finally {
    setBusy(-1);
  }
}
const waiting = {};
// Ask, and forget an earlier question of the same action.
function askLatest(action, request) {
  waiting[action]?.abort();
  waiting[action] = new AbortController();
  return ask(action, request, waiting[action].signal);
}
let toastTimer;
function toast(text) {
  $("toast").textContent = text.charAt(0).toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, 9000);
}
$("toast").addEventListener("click", () => { $("toast").hidden = true; });

function element(tag, properties = {}, ...inside) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...inside);
  return made;
}
function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text, selected: value === chosen })));
}

// ---------------------------------------------------------------- the landscape

const group = () => $("group").value;
const half = () => $("half").value;

async function loadPoints(reset = true) {
  const [points] = await Promise.all([askLatest("points", { plane: state.plane, group: group() }), loadRaster()]);
  landscape.titles = state.plane.map((k) => `motion ${k}, Å rms (${Math.round(100 * run.shares[k - 1])} % of the motion)`);
  landscape.setPoints(points);
  if (reset) landscape.reset();
  await loadColours();
}

async function loadColours() {
  const column = $("colour").value;
  if (!column) {
    landscape.setLevels(new Uint8Array(landscape.points.n), null);
    landscape.colourKey = null;
  } else {
    const found = await askLatest("colours", { column, group: group() });
    landscape.setLevels(found.levels, palette(VIRIDIS, found.labels, isDark() ? "#3a444d" : "#d3dade"));
    landscape.colourKey = { column, ...found };
  }
  drawLegend();
}

async function loadRaster() {
  const quantity = $("quantity").value;
  if (!quantity) {
    landscape.raster = null;
    return landscape.setRaster(null);
  }
  const found = await askLatest("landscape", { plane: state.plane, quantity, group: group() });
  landscape.setRaster(paintRaster(found, quantity));
  drawLegend();
}

function paintRaster(found, quantity) {
  const { grid, x, y } = found;
  const [nx, ny] = grid.shape;
  const theme = isDark() ? "dark" : "light";
  const energy = quantity.includes("energy");
  const colours = energy ? EARTH[theme] : BLUES[theme];
  const known = grid.filter(Number.isFinite).sort();
  const low = 0, high = known.length ? known[Math.floor(0.995 * (known.length - 1))] || 1 : 1;
  const image = element("canvas", { width: nx, height: ny });
  const context = image.getContext("2d");
  const pixels = context.createImageData(nx, ny);
  for (let i = 0; i < nx; i++) for (let j = 0; j < ny; j++) {
    const value = grid[i * ny + j];
    if (!Number.isFinite(value)) continue;
    const t = (value - low) / (high - low);
    // A density fades into nothing, a free energy does not.
    pixels.data.set([...blend(colours, t), energy ? 255 : Math.min(255, 3000 * t)], 4 * (i + nx * (ny - 1 - j)));
  }
  context.putImageData(pixels, 0, 0);
  return { x, y, image, key: { quantity, low, high, colours, unit: energy ? " kT" : quantity === "density" ? " per Å²" : "" }, found };
}

function bar(title, colours, low, high, unit = "") {
  const line = element("div", {}, `${title}  ${number(low)} `);
  const box = element("span", { className: "bar" });
  box.style.background = gradient(colours);
  line.append(box, ` ${number(high)}${unit}`);
  return line;
}

function drawLegend() {
  const parts = [];
  const key = landscape.colourKey;
  if (key?.labels) {
    const line = element("div", {}, key.column);
    key.labels.forEach((text, i) => {
      const dot = element("span", { className: "key" });
      dot.style.background = CATEGORIES[i % CATEGORIES.length];
      line.append(dot, text);
    });
    parts.push(line);
  } else if (key) parts.push(bar(key.column, VIRIDIS, key.low, key.high));
  const raster = landscape.raster?.key;
  if (raster) parts.push(bar(raster.quantity, raster.colours, raster.low, raster.high, raster.unit));
  $("landscape-legend").replaceChildren(...parts);
}

// ---------------------------------------------------------------- conformations

function full(place) {
  const at = [...state.at];
  state.plane.forEach((k, i) => { at[k - 1] = place[i]; });
  return at;
}
const texts = (at) => at.map((v) => number(v, 4)).join(",");
// What is not at the mean, in words.
function words(at) {
  const off = at.map((v, k) => [k, v]).filter(([k, v]) => Math.abs(v - run.mean[k]) > 0.05);
  return off.length ? off.map(([k, v]) => `motion ${k + 1} ${signed(v)}`).join(", ") + " Å rms" : "the mean";
}

function surfaceOf(answer, more = {}) {
  return { volume: answer.density, level: threshold(), spacing: answer.spacing, first: answer.first, values: answer.displacement,
    coloursShape: answer.displacement?.shape, plainShare: 0, opacity: 1, ...more };
}
const threshold = () => 2.55 * Number($("level").value);

let shown = [];
function showVolumes(volumes) {
  shown = volumes;
  molecule.setSurfaces(volumes);
}

function showState(answer, what) {
  $("molecule-caption").textContent = what;
  showVolumes([surfaceOf(answer)]);
  molecule.setCoordinates(answer.at);
  moleculeLegend(bar("displacement from the mean", MOTION, 0, answer.displacement_top, " Å"));
}
const moleculeLegend = (...lines) => $("molecule-legend").replaceChildren(...lines);

let levelSet = false;
async function goTo(at) {
  state.at = at;
  setSliders();
  molecule.setCoordinates(at);
  const answer = await askLatest("state", { at, half: half() });
  if (!levelSet) {
    $("level").value = Math.round(100 * answer.level);
    levelSet = true;
  }
  showState(answer, `conformation at ${words(at)}`);
  return answer;
}

function setSliders() {
  document.querySelectorAll("#motions input").forEach((input, k) => {
    input.value = state.at[k];
    input.nextElementSibling.textContent = signed(state.at[k]) + " Å";
  });
}

async function look(place) {
  stop();
  const at = full(place);
  const [answer, near] = await Promise.all([goTo(at), askLatest("nearest", { plane: state.plane, at: place, group: group() })]);
  const own = element("button", { type: "button", textContent: "its own conformation" });
  own.addEventListener("click", () => attempt(async () => {
    landscape.mark = state.plane.map((k) => near.coordinates[k - 1]);
    landscape.redrawFront();
    await goTo(near.coordinates);
  }));
  card("Conformation", "state", [], [
    [`At ${words(at)}: `, bold(`${number(answer.displacement_rms)} Å rms`),
      ` from the mean conformation, at most ${number(answer.displacement_top)} Å.`],
    [`The nearest particle is `, bold(`row ${near.row}`), ` (half ${near.half}, ${near.validation ? "validation" : "training"}): it moves by `
      + `${number(near.motion)} Å rms, with an error of ${number(near.error)} Å. Its neighbours' error is ${number(near.error_around)} Å. `, own],
  ], (name) => save("save_states", { at: [texts(state.at)], half: half() }, name));
}
const bold = (text) => element("b", { textContent: text });

// ---------------------------------------------------------------- lasso, path, two places

async function lasso(corners) {
  stop();
  state.polygon = `${state.plane}:` + corners.map((p) => p.map((v) => number(v, 5)).join(",")).join(":");
  const found = await askLatest("selection", { polygon: state.polygon, group: group(), half: half() });
  showState(found, `mean map of ${found.averaged < found.particles ? `${found.averaged} of ` : ""}the ${found.particles.toLocaleString("en")} particles in the region`);
  const complement = element("input", { type: "checkbox", id: "complement" });
  const share = (100 * found.particles) / run.particles;
  card("Region", "selection", [element("label", {}, complement, " all others instead")], [
    [bold(`${found.particles.toLocaleString("en")} particles`), ` (${number(share)} %): ${found.halves[0].toLocaleString("en")} of half 1, `
      + `${found.halves[1].toLocaleString("en")} of half 2, ${found.validation.toLocaleString("en")} of them validation.`],
    [`Their mean is at ${words(found.mean)}, ${number(found.displacement_rms)} Å rms from the mean conformation; `
      + `error of a particle ${number(found.error)} Å rms.`],
  ], (name) => {
    const options = { polygon: state.polygon, complement: complement.checked };
    if (group().startsWith("half")) options.half = Number(group().slice(-1));
    if (group() === "validation") throw new Error("subsets are of all particles or of a half; choose one of these under particles");
    return save("save_selection", options, name);
  });
}

async function path(points) {
  stop();
  const corners = points.map(full);
  state.path = corners;
  let length = 0;
  for (let i = 1; i < corners.length; i++) length += Math.hypot(...corners[i].map((v, k) => v - corners[i - 1][k]));
  const n = element("input", { type: "number", min: 2, max: 60, value: 10, id: "path-n", style: "width: 58px" });
  const button = element("button", { type: "button", textContent: "Pause" });
  button.addEventListener("click", () => {
    if (state.playing) stop();
    else play(frames);
    button.textContent = state.playing ? "Pause" : "Play";
  });
  card("Path", "path", [element("label", {}, "states ", n), button], [
    [`${corners.length} points, `, bold(`${number(length)} Å rms`), " long. The molecule moves along it and back; density, field"
      + (run.model ? " and atomic model" : "") + " with it."],
    ["Saved are maps of the states, evenly spaced, a table and a movie."],
  ], (name) => save("save_states", { through: corners.map(texts), n: Number(n.value), half: half() }, name));
  const steps = along(corners, 14);
  const frames = [];
  for (const at of steps) {
    frames.push({ at, answer: await askLatest("state", { at, half: half() }) });
    if (frames.length === 1) showState(frames[0].answer, "moving along the path");
  }
  $("molecule-caption").textContent = "moving along the path";
  const top = Math.max(...frames.map((f) => f.answer.displacement_top));
  moleculeLegend(bar("displacement from the mean", MOTION, 0, top, " Å"));
  for (const frame of frames) {
    const values = frame.answer.displacement.map((v) => (v * frame.answer.displacement_top) / top);
    frame.surface = molecule.gl ? makeSurface(surfaceOf(frame.answer, { values })) : null;
  }
  play(frames);
}

// Return n points evenly along a line through corners.
function along(corners, n) {
  const lengths = corners.slice(1).map((c, i) => Math.hypot(...c.map((v, k) => v - corners[i][k])));
  const total = lengths.reduce((a, b) => a + b, 0);
  return Array.from({ length: n }, (_, step) => {
    let left = (total * step) / (n - 1), i = 0;
    while (i < lengths.length - 1 && left > lengths[i]) left -= lengths[i++];
    return corners[i].map((v, k) => v + ((corners[i + 1][k] - v) * left) / (lengths[i] || 1));
  });
}

function play(frames) {
  let i = 0, step = 1;
  const next = () => {
    const frame = frames[i];
    molecule.surfaces = frame.surface ? [frame.surface] : [];
    molecule.setCoordinates(frame.at);
    landscape.mark = state.plane.map((k) => frame.at[k - 1]);
    landscape.redrawFront();
    if (i + step < 0 || i + step >= frames.length) step = -step;
    i += step;
  };
  state.playing = setInterval(next, 110);
}
function stop() {
  clearInterval(state.playing);
  state.playing = null;
}

async function two(first, last) {
  stop();
  const [a, b] = [full(first), full(last)];
  const found = await askLatest("difference", { first: a, last: b, half: half() });
  const volume = (array, plain) => ({ ...surfaceOf(found), volume: array, level: Math.max(8, 0.55 * threshold()), plain, plainShare: 1, pair: true });
  $("molecule-caption").textContent = "from A to B";
  molecule.setCoordinates(found.at);
  showVolumes([
    volume(found.gain, [0.16, 0.47, 0.75]), volume(found.loss, [0.77, 0.27, 0.2]),
    // A projector loses what is dark.
    surfaceOf(found, isDark() ? { plain: [0.88, 0.92, 0.96], plainShare: 1, opacity: 0.6 }
      : { plain: [0.62, 0.66, 0.7], plainShare: 1, opacity: 0.4 }),
  ]);
  const key = (colour, text) => {
    const dot = element("span", { className: "key" });
    dot.style.background = colour;
    return element("div", {}, dot, text);
  };
  moleculeLegend(key("#2978bf", "more in B"), key("#c44533", "less in B"), key("#9ea8b3", "A"));
  card("Difference", "difference", [], [
    [`A at ${words(a)}; B at ${words(b)}.`],
    ["Between them ", bold(`${number(found.displacement_rms)} Å rms`), `, at most ${number(found.displacement_most)} Å.`],
  ], (name) => save("save_states", { at: [texts(a), texts(b)], difference: true, half: half() }, name));
}

// ---------------------------------------------------------------- results and files

const counters = {};
let onSave = null;
function card(title, kind, options, paragraphs, saver) {
  $("result-title").textContent = title;
  $("result-text").replaceChildren(...paragraphs.map((parts) => element("p", {}, ...parts)));
  $("save-options").replaceChildren(...options);
  counters[kind] ??= 1;
  $("save-name").value = `${kind}-${counters[kind]}`;
  $("save").hidden = !saver;
  $("save").dataset.kind = kind;
  onSave = saver;
}
$("save").addEventListener("submit", (event) => {
  event.preventDefault();
  const kind = $("save").dataset.kind;
  attempt(async () => {
    $("save-button").disabled = true;
    const timer = setInterval(async () => {
      const { stage, done, total } = await ask("progress");
      $("save-progress").textContent = total ? `${stage} ${done} of ${total}` : "writing …";
    }, 500);
    try {
      await onSave($("save-name").value.trim());
      counters[kind]++;
      $("save-name").value = `${kind}-${counters[kind]}`;
    } finally {
      clearInterval(timer);
      $("save-button").disabled = false;
      $("save-progress").textContent = "";
    }
  });
});

async function save(action, options, name) {
  const done = await ask(action, { options, name });
  const list = $("saved-list");
  if (list.querySelector(".soft")) list.replaceChildren();
  const links = done.files.slice(0, 30).flatMap((file) => [
    element("a", { href: `/files/${encodeURI(file)}?token=${TOKEN}`, download: file.split("/").pop(), textContent: file.split("/").pop() }), " "]);
  const what = done.particles ? `${done.particles.toLocaleString("en")} particles: ` : `${done.files.length} files in ${done.files[0].split("/").slice(0, -1).join("/")}: `;
  list.prepend(element("p", {}, bold(name), " ", what, ...links), element("pre", { textContent: done.commands.join("\n") }));
}

// ---------------------------------------------------------------- the page

async function loadColumns() {
  const groups = await ask("columns");
  const chosen = $("colour").value;
  const made = Object.entries(groups).filter(([, names]) => names.length).map(([label, names]) => {
    const optgroup = element("optgroup", { label });
    optgroup.append(...names.map((name) => element("option", { value: name, textContent: name })));
    return optgroup;
  });
  $("colour").replaceChildren(element("option", { value: "", textContent: "none" }), ...made);
  $("colour").value = chosen;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  if (!landscape?.points) return;
  if (landscape.raster) landscape.setRaster(paintRaster(landscape.raster.found, landscape.raster.key.quantity));
  drawLegend();
  landscape.redraw();
  molecule.redraw();
}

function connect() {
  const changed = (id, work) => $(id).addEventListener("change", () => attempt(work));
  changed("x-motion", async () => { state.plane[0] = Number($("x-motion").value); landscape.setMode(landscape.mode); landscape.mark = null; await loadPoints(); });
  changed("y-motion", async () => { state.plane[1] = Number($("y-motion").value); landscape.setMode(landscape.mode); landscape.mark = null; await loadPoints(); });
  changed("group", () => loadPoints(false));
  changed("colour", loadColours);
  changed("quantity", async () => { await loadRaster(); drawLegend(); });
  changed("half", async () => { stop(); await goTo(state.at); });
  changed("table", async () => {
    const file = $("table").files[0];
    if (!file) return;
    $("table").value = "";
    const { added } = await ask("add_table", { name: file.name, text: await file.text() });
    await loadColumns();
    $("colour").value = added[0];
    await loadColours();
  });
  for (const part of Object.keys(molecule.show)) $(`show-${part}`).addEventListener("change", (event) => {
    molecule.show[part] = event.target.checked;
    molecule.redraw();
  });
  $("level").addEventListener("input", () => {
    if (state.playing) return;
    showVolumes(shown.map((s) => ({ ...s, level: s.pair ? Math.max(8, 0.55 * threshold()) : threshold() })));
  });
  document.querySelectorAll(".modes [data-mode]").forEach((button) => button.addEventListener("click", () => {
    stop();
    landscape.setMode(button.dataset.mode);
    markMode();
  }));
  $("landscape-reset").addEventListener("click", () => landscape.reset());
  $("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  $("help-button").addEventListener("click", () => $("help").showModal());
}
function markMode() {
  document.querySelectorAll(".modes [data-mode]").forEach((button) => {
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", button.dataset.mode === landscape.mode);
  });
}

function makeSliders() {
  $("motions").replaceChildren(...run.mean.map((mean, k) => {
    const slider = element("input", { type: "range", min: run.low[k], max: run.high[k], step: "any", value: mean });
    slider.addEventListener("input", () => {
      stop();
      state.at[k] = Number(slider.value);
      slider.nextElementSibling.textContent = signed(state.at[k]) + " Å";
      molecule.setCoordinates(state.at);
      landscape.mark = state.plane.map((m) => state.at[m - 1]);
      landscape.redrawFront();
    });
    slider.addEventListener("change", () => attempt(() => look(state.plane.map((m) => state.at[m - 1]))));
    return element("label", {}, `motion ${k + 1}`, slider, element("output"));
  }));
}

async function start() {
  const stored = localStorage.getItem("theme");
  setTheme(stored || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  run = await ask("about");
  document.title = `${run.name} – DynaMight explorer`;
  $("name").textContent = run.name;
  $("verdict").textContent = run.verdict;
  $("verdict").className = run.verdict.replace(" ", "-");
  $("verdict").title = run.sentence;
  $("numbers").textContent = `${run.particles.toLocaleString("en")} particles (${run.halves.map((n) => n.toLocaleString("en")).join(" + ")}), `
    + `${run.validation.toLocaleString("en")} for validation · motion ${number(run.motion)} Å rms, error ${number(run.error)} Å`;
  const motions = run.shares.map((share, k) => [String(k + 1), `motion ${k + 1}`]);
  state.plane = run.shares.length > 1 ? [1, 2] : [1, 1];
  fill($("x-motion"), motions, String(state.plane[0]));
  fill($("y-motion"), motions, String(state.plane[1]));
  fill($("group"), run.groups.map((g) => [g, g]), "all");
  fill($("quantity"), [["", "nothing"], ...run.quantities.map((q) => [q, q])], "density");
  fill($("colour"), [["", "none"]], "");
  if (run.model) {
    $("show-trace-label").hidden = false;
    $("show-trace-label").lastChild.textContent = ` ${run.model}`;
  }
  landscape = new Landscape($("landscape"), {
    look: (place) => attempt(() => look(place)), lasso: (points) => attempt(() => lasso(points)),
    path: (points) => attempt(() => path(points)), two: (a, b) => attempt(() => two(a, b)),
  });
  molecule = new Molecule($("molecule"));
  if (!landscape.gl || !molecule.gl) {
    $("notice").textContent = "This browser has no WebGL 2: up to 20,000 particles are drawn, and the molecule as points without its density. "
      + "Everything else works; another browser, or hardware acceleration switched on in its settings, shows all.";
    $("notice").hidden = false;
  }
  if (run.verdict !== "supported") {
    $("notice").textContent += (run.verdict === "undecided" ? " These particles do not decide whether the motions are real." : " The images do not support these motions: what is shown here may be noise.");
    $("notice").hidden = false;
  }
  connect();
  markMode();
  makeSliders();
  state.at = [...run.mean];
  molecule.setParts(await ask("molecule"));
  setSliders();
  card("Look around", "state", [], [["Click a place in the landscape to see the conformation there; draw around particles with ", bold("Lasso"),
    ", a ", bold("Path"), " for a movie, or ", bold("Compare"), " two places."], [run.sentence]], null);
  await Promise.all([loadPoints(), goTo(state.at), loadColumns()]);
}
attempt(start);
