// The first script, for any browser: says in a sentence why the page cannot work there, or starts it.
(function () {
  "use strict";
  // The smallest module that computes with vectors (i8x16.splat, i8x16.popcnt): what onnxruntime-web is compiled for.
  var VECTORS = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

  function hasVectors() {
    return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(VECTORS));
  }

  function obstacle() {
    if (location.protocol === "file:")
      return "Browsers run no such page from a file. Serve this folder, for instance with: python3 -m http.server";
    if (typeof Worker !== "function" || typeof OffscreenCanvas !== "function" || typeof createImageBitmap !== "function")
      return "This browser is too old for this page. It needs workers that can draw (Chrome 80, Firefox 105, Safari 16.4 or newer).";
    if (document.documentElement.dataset.mode !== "served" && !hasVectors())
      return "This browser has no WebAssembly SIMD, which the model runs on. Take Chrome 91, Firefox 89, Safari 16.4 or newer.";
    return "";
  }

  var alert = document.getElementById("alert"), found = obstacle();
  alert.textContent = found;
  if (found) return;
  import("./app.js").catch(function (error) {
    alert.textContent = "The page could not be started: " + error.message + ". Reload it; if that does not help, copy the whole site again.";
  });
})();
