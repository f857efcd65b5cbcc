// Voxels out of a page's text or a server's answer, each volume in a worker of its own: the panes are set up meanwhile.
"use strict";

// One plane of bytes: deflated bytes, or their base64.
async function inflate(source) {
  let bytes = source;
  if (typeof source === "string") {
    if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(source);
    else bytes = Uint8Array.from(atob(source), (letter) => letter.charCodeAt(0));
  }
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The planes of pack.py as one array of codes: uint8, uint16, or RGB bytes.
function joined(kind, planes) {
  const count = planes[0].length;
  if (kind === "rgb") {
    const rgb = new Uint8Array(3 * count);
    const [greens, reds, blues] = planes;
    for (let i = 0, at = 0; i < count; i++) {
      const green = greens[i];
      rgb[at++] = reds[i] + green;
      rgb[at++] = green;
      rgb[at++] = blues[i] + green;
    }
    return rgb;
  }
  if (planes.length === 1) return planes[0];
  const codes = new Uint16Array(count);
  const [low, high] = planes;
  for (let i = 0; i < count; i++) codes[i] = low[i] | (high[i] << 8);
  return codes;
}

async function unpacked(kind, sources) {
  return joined(kind, await Promise.all(sources.map(inflate)));
}

// The same in a worker; its text is that of the functions above, since a page from disk can load no file. Where the
// browser refuses the worker, here.
function unpack(kind, sources) {
  const text = `${[inflate, joined, unpacked].join("\n")}
    onmessage = async ({ data: { kind, sources } }) => {
      try {
        const codes = await unpacked(kind, sources);
        postMessage({ codes }, [codes.buffer]);
      } catch (error) { postMessage({ error: error.message }); }
    };`;
  return new Promise((resolve, reject) => {
    let worker;
    const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    const end = () => { worker?.terminate(); URL.revokeObjectURL(address); };
    const here = () => { end(); unpacked(kind, sources).then(resolve, reject); };
    try { worker = new Worker(address); } catch { here(); return; }
    worker.onerror = here;
    worker.onmessage = ({ data: { codes, error } }) => {
      end();
      if (codes) resolve(codes);
      else reject(new Error(error));
    };
    worker.postMessage({ kind, sources });
  });
}
