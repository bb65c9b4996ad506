// Runs graphs in WebAssembly, one thread, in turns: node wasm.mjs ORT_FOLDER FOLDER ROUNDS; see wasm.py.
import { readFileSync, writeFileSync } from "node:fs";

const [folder, asked, rounds] = process.argv.slice(2);
const ort = await import(`${folder}/ort.wasm.min.mjs`);
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = `${folder}/`;

const graphs = JSON.parse(readFileSync(`${asked}/graphs.json`));
for (const graph of graphs) {
  graph.session = await ort.InferenceSession.create(readFileSync(graph.file), { executionProviders: ["wasm"] });
  graph.feed = {};
  for (const [name, { file, shape }] of Object.entries(graph.inputs)) {
    const bytes = readFileSync(file);
    graph.feed[name] = new ort.Tensor("float32", new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4), shape);
  }
  graph.ms = [];
}
for (let round = -1; round < Number(rounds); round++) {  // the first warms up
  for (const graph of graphs) {
    const start = performance.now();
    const found = await graph.session.run(graph.feed);
    if (round >= 0) graph.ms.push(performance.now() - start);
    graph.masks = found.low_res_masks.data;
  }
}
for (const { name, masks } of graphs) writeFileSync(`${asked}/${name}.masks`, Buffer.from(masks.buffer, masks.byteOffset, masks.byteLength));
writeFileSync(`${asked}/found.json`, JSON.stringify({ version: ort.env.versions.web, ms: Object.fromEntries(graphs.map(({ name, ms }) => [name, ms])) }));
