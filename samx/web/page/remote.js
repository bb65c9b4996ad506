// The model on the machine that serves this page: `samx serve` runs encoder and decoder in Python.

export class RemoteEngine {
  static async open(site) {
    return new RemoteEngine(site);
  }

  constructor(site) {
    Object.assign(this, { site, where: site.served, note: "", picture: null });
  }

  async encode({ file, width, height }) {
    const found = await (await posted("picture", file, "application/octet-stream")).json();
    if (found.width !== width || found.height !== height)
      throw new Error(`The picture is ${width} x ${height} px here and ${found.width} x ${found.height} px in Python. Save it again as PNG.`);
    this.picture = found.picture;
    return found.ms;
  }

  async decode({ points, box }) {
    const body = JSON.stringify({ picture: this.picture, points: points.map(({ x, y }) => [x, y]), labels: points.map(({ label }) => label), box });
    const values = new Float32Array(await (await posted("masks", body, "application/json")).arrayBuffer());
    const count = values.length / (this.site.masks.side ** 2 + 1); // scores come first
    return { scores: values.slice(0, count), logits: values.subarray(count) };
  }

  forget() {
    this.picture = null;
  }
}

async function posted(path, body, type) {
  const response = await fetch(new URL(path, import.meta.url), { method: "POST", body, headers: { "content-type": type } }).catch(() => {
    throw new Error("samx serve does not answer any more. Start it again, and reload.");
  });
  if (!response.ok) throw new Error(await response.text());
  return response;
}
