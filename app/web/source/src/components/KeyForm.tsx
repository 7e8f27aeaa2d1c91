// The API key, asked for when the service wants one.

import { useSignal } from "@preact/signals";
import { keyRefused, setApiKey } from "../api/client";
import { notice } from "../state/notice";
import { options, setOptions } from "../state/options";

export function KeyForm() {
  const refused = keyRefused.value;
  const key = useSignal("");
  if (refused === null) return null;
  const submit = (event: Event): void => {
    event.preventDefault();
    if (!key.value.trim()) return;
    setApiKey(key.value);
    const again = notice.value?.again;
    notice.value = null;
    again?.();
  };
  return (
    <form class="key-form panel" onSubmit={submit}>
      <label for="key">
        {refused ? "This key is not accepted. Enter another one." : "This service needs an API key."}
      </label>
      <div class="line">
        <input
          id="key"
          type="password"
          autocomplete="off"
          spellcheck={false}
          ref={(field) => field?.focus()}
          value={key.value}
          onInput={(event) => (key.value = event.currentTarget.value)}
        />
        <button type="submit" class="primary">
          Use this key
        </button>
      </div>
      <label class="check">
        <input
          type="checkbox"
          checked={options.value.listens}
          onChange={(event) => setOptions({ listens: event.currentTarget.checked })}
        />
        Listen to what is in each recording by itself; it counts for the key's quota
      </label>
      <p class="quiet">The key is kept in this tab only, until you close it.</p>
    </form>
  );
}
