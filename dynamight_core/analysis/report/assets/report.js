// The animated motion: points = rest + coordinate * motion, redrawn for each frame.
(() => {
  const figure = document.getElementById("figure-movie");
  if (!figure) return;
  const decode = (text) => {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return new Float32Array(bytes.buffer);
  };
  const data = JSON.parse(document.getElementById("movie-data").textContent);
  const rest = decode(data.rest);
  const motions = data.motions.map((m) => ({ field: decode(m.field), low: m.low, high: m.high }));
  const n = rest.length / 3;
  const select = document.getElementById("movie-motion");
  const slider = document.getElementById("movie-coordinate");
  const button = document.getElementById("movie-play");
  const output = document.getElementById("movie-value");
  const axes = [new Float32Array(n), new Float32Array(n), new Float32Array(n)];
  let drawing = false;

  function coordinate() {
    const m = motions[select.value];
    return m.low + ((m.high - m.low) * slider.value) / 1000;
  }
  function draw() {
    if (drawing) return;
    drawing = true;
    const c = coordinate();
    const field = motions[select.value].field;
    for (let i = 0; i < n; i++) for (let a = 0; a < 3; a++) axes[a][i] = rest[3 * i + a] + c * field[3 * i + a];
    output.textContent = `${c > 0 ? "+" : ""}${c.toFixed(1)} Å`;
    const copy = axes.map((v) => v.slice());
    Plotly.restyle(figure, { x: [copy[0]], y: [copy[1]], z: [copy[2]] }, [0]).then(() => {
      drawing = false;
    });
  }
  function recolour() {
    const field = motions[select.value].field;
    const size = new Float32Array(n);
    for (let i = 0; i < n; i++) size[i] = Math.hypot(field[3 * i], field[3 * i + 1], field[3 * i + 2]);
    const top = size.reduce((a, b) => Math.max(a, b), 0);
    Plotly.restyle(figure, { "marker.color": [size], "marker.cmin": 0, "marker.cmax": top }, [0]).then(draw);
  }

  let started = null;
  let phase = 0;
  function frame(now) {
    if (started === null) return;
    // Four seconds there and back, slowing down at the ends as particles gather there.
    phase = (now - started) / 4000;
    slider.value = 500 + 500 * Math.sin(2 * Math.PI * phase);
    draw();
    setTimeout(() => requestAnimationFrame(frame), 33);
  }
  button.addEventListener("click", () => {
    const playing = started !== null;
    started = playing ? null : performance.now() - 4000 * phase;
    button.textContent = playing ? "Play" : "Pause";
    if (!playing) requestAnimationFrame(frame);
  });
  slider.addEventListener("input", () => {
    started = null;
    button.textContent = "Play";
    draw();
  });
  select.addEventListener("change", recolour);
  draw();
})();
