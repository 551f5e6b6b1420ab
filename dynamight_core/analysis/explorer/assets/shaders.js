// Shaders of WebGL 2: points of the landscape, meshes and balls of the molecule.

export const POINT_VERTEX = `
in vec2 place; in float level;
uniform vec2 low, high, viewLow, viewHigh; uniform float size; uniform sampler2D colours;
out vec3 colour;
void main() {
  vec2 p = low + place * (high - low);
  gl_Position = vec4(2.0 * (p - viewLow) / (viewHigh - viewLow) - 1.0, 0.0, 1.0);
  gl_PointSize = size;
  colour = texture(colours, vec2((level * 255.0 + 0.5) / 256.0, 0.5)).rgb;
}`;
// The same in three dimensions.
export const CLOUD_VERTEX = `
in vec3 place; in float level;
uniform vec3 low, high, centre; uniform mat3 rotation; uniform vec2 scale; uniform float size; uniform sampler2D colours;
out vec3 colour;
void main() {
  vec3 p = rotation * (low + place * (high - low) - centre);
  gl_Position = vec4(p.xy * scale, 0.0, 1.0);
  gl_PointSize = size;
  colour = texture(colours, vec2((level * 255.0 + 0.5) / 256.0, 0.5)).rgb;
}`;
export const POINT_FRAGMENT = `
in vec3 colour; uniform float opacity; out vec4 shown;
void main() {
  float r = length(gl_PointCoord - 0.5);
  if (r > 0.5) discard;
  shown = vec4(colour, opacity);
}`;

export const MESH_VERTEX = `
in vec3 position; in vec3 normal; in float value;
uniform mat3 rotation; uniform vec3 centre; uniform vec2 scale; uniform float depth;
out vec3 n; out float v; out float far;
void main() {
  vec3 p = rotation * (position - centre);
  gl_Position = vec4(p.xy * scale, -p.z * depth, 1.0);
  n = rotation * normal; v = value; far = -p.z * depth;
}`;
const SHADE = `
uniform sampler2D colours; uniform vec3 plain; uniform float plainWeight, opacity; uniform vec3 ground;
vec3 lit(vec3 base, vec3 n, float far) {
  float key = max(dot(n, normalize(vec3(0.35, 0.55, 0.75))), 0.0);
  float fill = max(dot(n, normalize(vec3(-0.6, -0.2, 0.4))), 0.0);
  float shine = pow(max(dot(n, normalize(vec3(0.2, 0.32, 0.93))), 0.0), 30.0);
  vec3 c = base * (0.42 + 0.58 * key + 0.16 * fill) + 0.14 * shine;
  return mix(c, ground, clamp(0.25 * (far + 0.4), 0.0, 0.3));
}
vec3 coloured(float v) { return mix(texture(colours, vec2((v * 254.0 + 0.5) / 256.0, 0.5)).rgb, plain, plainWeight); }`;
export const MESH_FRAGMENT =
  `
in vec3 n; in float v; in float far; out vec4 shown;` +
  SHADE +
  `
void main() {
  vec3 m = normalize(n);
  float rim = opacity < 1.0 ? opacity + (1.0 - opacity) * 0.8 * pow(1.0 - abs(m.z), 2.0) : 1.0;
  shown = vec4(lit(coloured(v), m, far), rim);
}`;
export const BALL_VERTEX = `
in vec3 position; in float radius; in float value;
uniform mat3 rotation; uniform vec3 centre; uniform vec2 scale; uniform float depth, pixels;
out float v; out float far;
void main() {
  vec3 p = rotation * (position - centre);
  gl_Position = vec4(p.xy * scale, -p.z * depth, 1.0);
  gl_PointSize = max(2.0, 2.0 * radius * scale.y * pixels);
  v = value; far = -p.z * depth;
}`;
export const BALL_FRAGMENT =
  `
in float v; in float far; out vec4 shown;` +
  SHADE +
  `
void main() {
  vec2 p = 2.0 * gl_PointCoord - 1.0;
  float r = dot(p, p);
  if (r > 1.0) discard;
  vec3 m = vec3(p.x, -p.y, sqrt(1.0 - r));
  shown = vec4(lit(coloured(v), m, far), opacity < 1.0 ? opacity * (0.35 + 0.65 * r) : 1.0);
}`;
