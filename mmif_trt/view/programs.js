// NiiVue makes 40 programs of shaders for each pane, waits for each, and draws with ten of them.
"use strict";

// Puts off what a program needs until something is drawn with it: compiling, linking, and its uniforms, which are
// kept in the order in which they were set.
function makeLazy(gl) {
  const real = Object.getPrototypeOf(gl);
  const waiting = new Map(); // program: its calls to come
  let current = null;
  class Place { // of a uniform in a program
    constructor(program, name) { Object.assign(this, { program, name }); }
    get found() { return (this.known ??= { at: real.getUniformLocation.call(gl, this.program, this.name) }).at; }
  }
  function finish(program) {
    const calls = waiting.get(program);
    waiting.delete(program);
    for (const shader of gl.getAttachedShaders(program)) real.compileShader.call(gl, shader);
    real.linkProgram.call(gl, program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    real.useProgram.call(gl, program);
    for (const call of calls) call();
  }
  gl.compileShader = () => {};
  gl.linkProgram = (program) => { waiting.set(program, []); };
  gl.getProgramParameter = (program, what) =>
    waiting.has(program) && what === gl.LINK_STATUS ? true : real.getProgramParameter.call(gl, program, what);
  gl.getUniformLocation = (program, name) => new Place(program, name);
  gl.useProgram = (program) => {
    current = program;
    if (!waiting.has(program)) real.useProgram.call(gl, program);
  };
  for (const name in real) { // with what it inherits, in some browsers
    if (!/^uniform(Matrix)?\d/.test(name)) continue;
    gl[name] = (place, ...values) => {
      if (!place) return;
      const set = () => real[name].call(gl, place.found, ...values);
      if (waiting.has(current)) {
        values = values.map((value) => (typeof value === "object" ? value.slice() : value)); // its owner may change it
        waiting.get(current).push(set);
      } else set();
    };
  }
  for (const name of ["drawArrays", "drawElements"]) {
    gl[name] = (...values) => {
      if (waiting.has(current)) finish(current);
      real[name].call(gl, ...values);
    };
  }
}
