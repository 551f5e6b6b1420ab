"use strict";
// What both views share: questions to the server, colours, and a little WebGL.

const TOKEN = new URLSearchParams(location.search).get("token");
const ARRAYS = { f4: Float32Array, u2: Uint16Array, u1: Uint8Array };

// Ask the server for an action; returns its values with its arrays among them.
async function ask(action, request = {}, signal) {
  let response;
  try {
    response = await fetch("/" + action, {
      method: "POST", body: JSON.stringify(request), headers: { "X-Token": TOKEN }, signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("dynamight explore does not answer: is it still running, and the tunnel open?");
  }
  if (!response.ok) throw new Error((await response.json()).error);
  const buffer = await response.arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const answer = head.values;
  let at = 4 + length;
  for (const { name, type, shape } of head.arrays) {
    const n = shape.reduce((a, b) => a * b, 1);
    answer[name] = new ARRAYS[type](buffer, at, n);
    answer[name].shape = shape;
    at += Math.ceil(answer[name].byteLength / 4) * 4;
  }
  return answer;
}

// ---------------------------------------------------------------- colours

const VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const BLUES = { light: ["#eef4f8", "#c9deea", "#94c0d8", "#5a9cc0", "#2f78a3", "#14507a"],
  dark: ["#18242e", "#1f3f54", "#28607e", "#3886a6", "#63b2ca", "#b7e2ec"] };
const EARTH = { light: ["#fbf3e2", "#efd9a9", "#d9b274", "#b8814e", "#8a5238", "#572c26"],
  dark: ["#f2e2bd", "#d6b578", "#a97e4d", "#77503a", "#4a332d", "#241d20"] };
// Displacement: what rests is grey.
const MOTION = ["#9fadb6", "#7aaab8", "#3f9f9a", "#6db65c", "#d9c832", "#f08a2c"];
const CATEGORIES = ["#2a7f9e", "#cf6a3f", "#6a9a3f", "#8a6bb1", "#c49a2c", "#c0567e", "#4a9d8f", "#8d6e57", "#5a79c7", "#a3a33a",
  "#7f8b94", "#b24a3c"];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// Return [r, g, b] at t from 0 to 1 along colours.
function blend(colours, t) {
  const place = Math.min(Math.max(t, 0), 1) * (colours.length - 1);
  const i = Math.min(Math.floor(place), colours.length - 2);
  const [a, b] = [rgb(colours[i]), rgb(colours[i + 1])];
  return a.map((v, k) => v + (b[k] - v) * (place - i));
}

// Return 256 RGBA colours of levels 0 to 254; 255 is what has no value.
function palette(colours, labels, missing) {
  const out = new Uint8Array(1024);
  for (let i = 0; i < 255; i++) {
    const colour = labels ? rgb(CATEGORIES[i % CATEGORIES.length]) : blend(colours, i / 254);
    out.set([...colour, 255], 4 * i);
  }
  out.set([...rgb(missing), 255], 1020);
  return out;
}

const gradient = (colours) => `linear-gradient(90deg, ${colours.join(", ")})`;

function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 10000 || (size > 0 && size < 1e-3)) return value.toPrecision(digits);
  return String(Number(value.toPrecision(digits)));
}
function signed(value) {
  const text = Math.abs(value).toFixed(1);
  return (text === "0.0" ? "" : value > 0 ? "+" : "−") + text;
}

// ---------------------------------------------------------------- WebGL

function openGl(canvas) {
  if (new URLSearchParams(location.search).has("nowebgl")) return null;
  return canvas.getContext("webgl2", { alpha: true, antialias: true, premultipliedAlpha: false, preserveDrawingBuffer: true });
}

function program(gl, vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, "#version 300 es\nprecision highp float;\n" + source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const places = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const { name } = gl.getActiveUniform(made, i);
    places[name] = gl.getUniformLocation(made, name);
  }
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_ATTRIBUTES); i++) {
    const { name } = gl.getActiveAttrib(made, i);
    places[name] = gl.getAttribLocation(made, name);
  }
  return { made, places };
}

function attribute(gl, place, buffer, size, type = gl.FLOAT, scaled = false) {
  gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, size, type, scaled, 0, 0);
}

// Give a canvas as many pixels as the screen has for it; returns [width, height] in CSS pixels.
function fit(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  return [width, height];
}

// Return a function that calls `draw` once before the next frame, however often it is called.
function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; draw(); });
  };
}

const themeColour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => document.documentElement.dataset.theme === "dark";
