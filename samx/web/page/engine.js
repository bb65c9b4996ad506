// The page's side of the worker: each call is a promise, and pictures and progress are told as they come.

export class Engine {
  constructor({ onprogress, onseen }) {
    this.waiting = new Map();
    this.count = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => {
      if (data.doing) return onprogress(data);
      if (data.seen) return onseen(data.seen);
      const { resolve, reject } = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if (data.error) reject(new Error(data.error));
      else resolve(data.answer);
    };
    this.worker.onerror = (event) => this.fail(event.message);
  }

  call(job, given = {}) {
    const id = ++this.count;
    if (this.stopped) return Promise.reject(this.stopped);
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.postMessage({ id, job, ...given });
    });
  }

  fail(message) {
    const error = this.stopped = new Error(`The worker that computes has stopped${message ? `: ${message}` : ""}. Reload the page.`);
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}
