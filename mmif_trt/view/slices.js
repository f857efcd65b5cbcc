// How a pane's slices are coloured: from the codes themselves, as they are drawn. NiiVue would colour all voxels again at
// each change of a window, and needs four bytes for each of them.
"use strict";

const UNITS = { codes: 12, palette: 13 }; // of textures; NiiVue's drawing tools have these, and no page uses them
const SLICE_SHADER = `#version 300 es
precision highp int;
precision highp float;
uniform highp usampler2DArray codes;
uniform sampler2D palette;
uniform int axCorSag;
uniform bool isGrey; // one line each: NiiVue reads these lines
uniform bool isNearest;
uniform float low; // code of black
uniform float high; // code of white
in vec3 texPos; // 0 to 1 along each axis of the grid
out vec4 color;
vec3 code(ivec3 at) {
  return vec3(texelFetch(codes, clamp(at, ivec3(0), textureSize(codes, 0) - 1), 0).rgb);
}
void main() {
  // Linear within the slice; across it the nearest one, which the crosshair is in the middle of.
  vec3 at = texPos * vec3(textureSize(codes, 0)) - 0.5;
  ivec3 across = axCorSag == 2 ? ivec3(0, 1, 0) : ivec3(1, 0, 0);
  ivec3 down = axCorSag == 0 ? ivec3(0, 1, 0) : ivec3(0, 0, 1);
  vec3 found;
  if (isNearest) found = code(ivec3(floor(at + 0.5)));
  else {
    ivec3 moves = across + down;
    vec3 start = mix(floor(at + 0.5), floor(at), vec3(moves));
    ivec3 first = ivec3(start);
    float right = dot(at - start, vec3(across)), below = dot(at - start, vec3(down));
    found = mix(mix(code(first), code(first + across), right), mix(code(first + down), code(first + moves), right), below);
  }
  if (isGrey) {
    float part = clamp((found.r - low) / (high - low), 0.0, 1.0);
    found = 255.0 * texture(palette, vec2((255.0 * part + 0.5) / 256.0, 0.5)).rgb;
  }
  color = vec4(found / 255.0, 1.0);
}`;

// A texture of codes on their unit. Raises an Error for more than the graphics take.
function upload(gl, [width, height, depth], kind, codes) {
  const sides = [Math.max(width, height), depth];
  const most = [gl.MAX_TEXTURE_SIZE, gl.MAX_ARRAY_TEXTURE_LAYERS].map((what) => gl.getParameter(what));
  if (sides.some((side, i) => side > most[i])) {
    throw new Error(`${width} x ${height} x ${depth}: this browser's graphics take ${most[0]} x ${most[0]} x ${most[1]} at most.`);
  }
  const [format, of, type] = kind === "rgb" ? [gl.RGB8UI, gl.RGB_INTEGER, gl.UNSIGNED_BYTE]
    : codes instanceof Uint16Array ? [gl.R16UI, gl.RED_INTEGER, gl.UNSIGNED_SHORT] : [gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE];
  const texture = gl.createTexture();
  gl.activeTexture(gl.TEXTURE0 + UNITS.codes);
  gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  gl.texStorage3D(gl.TEXTURE_2D_ARRAY, 1, format, width, height, depth);
  gl.texSubImage3D(gl.TEXTURE_2D_ARRAY, 0, 0, 0, 0, width, height, depth, of, type, codes);
  for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D_ARRAY, filter, gl.NEAREST);
  return texture;
}

// entries: 256 of [R, G, B].
function usePalette(gl, entries) {
  gl.activeTexture(gl.TEXTURE0 + UNITS.palette);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  const bytes = Uint8Array.from(entries.flatMap((entry) => [...entry, 255]));
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
  for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.LINEAR);
  for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
}

// Leaves to NiiVue a volume's place and scale; its own textures of it are not made.
const MUTED = ["texStorage3D", "texSubImage3D", "drawArrays", "framebufferTextureLayer", "checkFramebufferStatus"];
function drawWithCodes(nv, isNearest) {
  const { gl } = nv;
  const own = nv.refreshLayers.bind(nv);
  nv.uiData.max3D = Infinity; // larger ones would be drawn in another way
  nv.refreshLayers = (...args) => {
    const kept = MUTED.map((name) => [name, gl[name]]);
    for (const name of MUTED) gl[name] = () => gl.FRAMEBUFFER_COMPLETE;
    try { own(...args); } finally { Object.assign(gl, Object.fromEntries(kept)); }
  };
  nv.setCustomSliceShader(SLICE_SHADER);
  const { uniforms } = nv.customSliceShader;
  for (const [name, unit] of Object.entries(UNITS)) gl.uniform1i(uniforms[name], unit);
  gl.uniform1i(uniforms.isNearest, isNearest);
}

// What the next drawing shows: a texture of upload with the values of black and white.
function setCodes(nv, texture, { kind, slope, inter }, low, high) {
  const { gl, customSliceShader: shader } = nv;
  gl.activeTexture(gl.TEXTURE0 + UNITS.codes);
  gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
  shader.use(gl);
  gl.uniform1i(shader.uniforms.isGrey, kind === "grey");
  gl.uniform1f(shader.uniforms.low, (low - inter) / slope);
  gl.uniform1f(shader.uniforms.high, (high - inter) / slope);
}
