// Asks the reader for the server's API key.

import { $ } from "./dom.js";

/**
 * Opens the dialog.
 *
 * @param {boolean} refused - whether a key was given before and not taken
 * @returns {Promise<string|null>} the key, or null where the reader will not give one
 */
export function askKey(refused) {
  const dialog = $("key-dialog");
  const field = $("key");
  $("key-note").textContent = refused
    ? "The key given before was not accepted."
    : "It is kept in this tab only.";
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  $("key-cancel").onclick = () => dialog.close("");
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => resolve(dialog.returnValue === "ok" && field.value ? field.value : null),
      { once: true },
    );
  });
}
