// Downloads: whole files, with progress, checked against the length and the hash that the site was written with.

// Return the bytes of a file { file, bytes, sha256 }; `arrived(count)` hears of every piece.
export async function download({ file, bytes, sha256 }, arrived) {
  const url = new URL(`${file}?sha256=${sha256.slice(0, 16)}`, import.meta.url); // another version is another address
  const response = await fetch(url).catch((error) => {
    throw new Error(`${file} cannot be loaded: ${error.message}. Check the connection, and reload.`);
  });
  if (!response.ok) throw new Error(`${file} is not on the server (answer ${response.status}). Copy the whole site there.`);
  const data = await gathered(response, bytes, arrived);
  if (data === null) throw new Error(`${file} has another length than the ${bytes} bytes it was written with. Reload, or copy the site again.`);
  await check(file, data, sha256);
  return data;
}

// Read a body into one array; null where it has another length.
async function gathered(response, bytes, arrived) {
  const data = new Uint8Array(bytes), reader = response.body.getReader();
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return at === bytes ? data : null;
    if (at + value.length > bytes) return null;
    data.set(value, at);
    at += value.length;
    arrived(value.length);
  }
}

async function check(file, data, sha256) {
  if (!globalThis.crypto?.subtle) return; // browsers have it on https and on this machine alone
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  if (Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("") !== sha256)
    throw new Error(`${file} is not the file that this site was written with. Reload, or copy the site again.`);
}
