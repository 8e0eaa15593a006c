// Voxels that turn in the browser: WebGL 2, no library, no network. Each <figure class="voxels"> holds its volumes as
// JSON in a script element: {grid: {lower, size}, volumes: [{name, colors, labels, voxels}]}, voxels being base64 of
// five bytes each: x, y, z, label, and a bit for each side that nothing covers (-x +x -y +y -z +z).
"use strict";

const VOXEL_BYTES = 5;
const FIELD_OF_VIEW = (38 * Math.PI) / 180;
const TURN_PER_SECOND = 0.25;
const BRIGHTNESS = [0.72, 0.82, 0.66, 0.9, 0.5, 1.0]; // of the six sides, as if the sun stood behind and to the left

const VERTEX = `#version 300 es
uniform mat4 view;
uniform vec3 lower, size;
uniform int side;
uniform vec3 colors[64];
in vec4 voxel; // x, y, z, label
out vec3 color;
out vec2 place;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  int axis = side >> 1;
  float far = float(side & 1);
  vec3 offset = axis == 0 ? vec3(far, corner) : axis == 1 ? vec3(corner.x, far, corner.y) : vec3(corner, far);
  gl_Position = view * vec4(lower + (voxel.xyz + offset) * size, 1.0);
  color = colors[int(voxel.w)];
  place = corner;
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
uniform float brightness;
in vec3 color;
in vec2 place;
out vec4 shown;
void main() {
  vec2 inside = min(place, 1.0 - place);
  vec2 width = max(fwidth(place), 1e-4);
  // The outline fades where a voxel is only a few pixels wide.
  float line = 1.0 - smoothstep(0.0, 1.0, min(inside.x / width.x, inside.y / width.y) / 1.2);
  float near = 1.0 - smoothstep(0.08, 0.3, max(width.x, width.y));
  shown = vec4(color * brightness * (1.0 - 0.3 * line * near), 1.0);
}`;

function decode(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// The open sides of all voxels, side after side: x, y, z, label of each.
function sidesOf(bytes) {
  return [0, 1, 2, 3, 4, 5].map((side) => {
    const found = [];
    for (let at = 0; at < bytes.length; at += VOXEL_BYTES) {
      if (bytes[at + 4] & (1 << side)) found.push(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    }
    return Uint8Array.from(found);
  });
}

const subtract = (a, b) => a.map((value, k) => value - b[k]);
const dot = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const normalize = (a) => a.map((value) => value / Math.sqrt(dot(a, a)));

// Column-major world -> clip, looking from eye to target with z up.
function viewMatrix(eye, target, aspect, near, far) {
  const back = normalize(subtract(eye, target));
  const right = normalize(cross([0, 0, 1], back));
  const up = cross(back, right);
  const focal = 1 / Math.tan(FIELD_OF_VIEW / 2);
  const rows = [right.map((v) => (v * focal) / aspect), up.map((v) => v * focal), back];
  const shift = rows.map((row) => -dot(row, eye));
  const depth = [(far + near) / (near - far), (2 * far * near) / (near - far)];
  const out = [];
  for (let k = 0; k < 3; k++) out.push(rows[0][k], rows[1][k], rows[2][k] * depth[0], -rows[2][k]);
  out.push(shift[0], shift[1], shift[2] * depth[0] + depth[1], -shift[2]);
  return new Float32Array(out);
}

class Viewer {
  constructor(figure) {
    this.figure = figure;
    this.canvas = figure.querySelector("canvas");
    const data = JSON.parse(figure.querySelector("script").textContent);
    this.grid = data.grid;
    this.volumes = data.volumes;
    this.chosen = 0;
    this.azimuth = Math.PI + 0.35; // behind the vehicle, a little to its right
    this.elevation = 0.6;
    const extent = data.grid.size.map((size, k) => size * data.grid.shape[k]);
    this.target = data.grid.lower.map((low, k) => (k < 2 ? low + extent[k] / 2 : low + extent[2] * 0.2));
    this.reach = Math.hypot(...extent);
    this.distance = this.reach * 1.05;
    this.turning = !matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.visible = false;
    this.last = 0;
  }

  start() {
    const gl = this.canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.gl = gl;
    this.program = this.link();
    for (const volume of this.volumes) volume.sides = sidesOf(decode(volume.voxels)).map((sides) => this.upload(sides));
    this.listen();
    new IntersectionObserver((entries) => {
      this.visible = entries[entries.length - 1].isIntersecting;
      if (this.visible) this.ask();
    }).observe(this.canvas);
    new ResizeObserver(() => this.ask()).observe(this.canvas);
    this.ask();
  }

  link() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return program;
  }

  upload(voxels) {
    const gl = this.gl;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, voxels, gl.STATIC_DRAW);
    const voxel = gl.getAttribLocation(this.program, "voxel");
    gl.enableVertexAttribArray(voxel);
    gl.vertexAttribPointer(voxel, 4, gl.UNSIGNED_BYTE, false, 0, 0);
    gl.vertexAttribDivisor(voxel, 1);
    return { array, count: voxels.length / 4 };
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.turning = false;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      if (event.shiftKey || event.buttons & 2) this.shift(event.movementX, event.movementY);
      else {
        this.azimuth -= event.movementX * 0.006;
        this.elevation = Math.min(1.5, Math.max(0.03, this.elevation + event.movementY * 0.006));
      }
      this.ask();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.turning = false;
      this.distance = Math.min(3 * this.reach, Math.max(3, this.distance * Math.exp(event.deltaY * 0.001)));
      this.ask();
    }, { passive: false });
    this.figure.querySelectorAll("button").forEach((button, k) => button.addEventListener("click", () => this.choose(k)));
  }

  choose(k) {
    this.chosen = k;
    this.figure.querySelectorAll("button").forEach((button, n) => button.setAttribute("aria-pressed", n === k));
    this.ask();
  }

  shift(dx, dy) {
    const scale = (2 * this.distance * Math.tan(FIELD_OF_VIEW / 2)) / this.canvas.clientHeight;
    const right = [-Math.sin(this.azimuth), Math.cos(this.azimuth)];
    const ahead = [-Math.cos(this.azimuth), -Math.sin(this.azimuth)];
    for (let k = 0; k < 2; k++) this.target[k] += scale * (-dx * right[k] + dy * ahead[k]);
  }

  ask() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame((now) => this.frame(now));
  }

  frame(now) {
    this.asked = false;
    const passed = Math.min(0.1, (now - this.last) / 1000);
    this.last = now;
    if (this.turning) this.azimuth += TURN_PER_SECOND * passed;
    this.draw();
    this.figure.dataset.state = "ready";
    if (this.turning && this.visible) this.ask();
  }

  draw() {
    const gl = this.gl;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((n) => Math.max(1, Math.round(n * ratio)));
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
    gl.viewport(0, 0, width, height);
    gl.clearColor(0.93, 0.94, 0.96, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.useProgram(this.program);
    const level = this.distance * Math.cos(this.elevation);
    const eye = [
      this.target[0] + level * Math.cos(this.azimuth),
      this.target[1] + level * Math.sin(this.azimuth),
      this.target[2] + this.distance * Math.sin(this.elevation),
    ];
    const at = (name) => gl.getUniformLocation(this.program, name);
    const view = viewMatrix(eye, this.target, width / height, this.distance * 0.01, this.distance + this.reach);
    gl.uniformMatrix4fv(at("view"), false, view);
    gl.uniform3fv(at("lower"), this.grid.lower);
    gl.uniform3fv(at("size"), this.grid.size);
    const volume = this.volumes[this.chosen];
    gl.uniform3fv(at("colors"), new Float32Array(volume.colors.flat().map((value) => value / 255)));
    volume.sides.forEach((part, side) => {
      if (!part.count) return;
      gl.uniform1i(at("side"), side);
      gl.uniform1f(at("brightness"), BRIGHTNESS[side]);
      gl.bindVertexArray(part.array);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, part.count);
    });
  }
}

for (const figure of document.querySelectorAll("figure.voxels")) {
  try {
    new Viewer(figure).start();
  } catch (error) {
    figure.dataset.state = "failed";
    figure.querySelector(".message").textContent = `Cannot be shown in 3D here: ${error.message}`;
  }
}
