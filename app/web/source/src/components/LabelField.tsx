// A text field for what a sound is, completed from the classes that can be asked for by name (ARIA's combobox).

import { useSignal } from "@preact/signals";
import { useEffect, useId, useRef } from "preact/hooks";
import { isAbort } from "../api/client";
import type { Label } from "../api/types";
import { report } from "../state/notice";
import { searchLabels } from "../state/targets";

const DELAY = 150; // ms after the last keystroke

interface Props {
  label: string;
  placeholder: string;
  submit: string; // name of the button
  /** Gets the words and the classes that were found; `onlyClasses`: only one of these can be chosen. */
  onChoose: (text: string, found: Label[]) => void;
  onlyClasses?: boolean;
}

export function LabelField({ label, placeholder, submit, onChoose, onlyClasses = false }: Props) {
  const id = useId();
  const text = useSignal("");
  const found = useSignal<Label[]>([]);
  const active = useSignal(-1);
  const open = useSignal(false);
  const searched = useSignal("");
  const abort = useRef(new AbortController());
  useEffect(() => () => abort.current.abort(), []);

  const search = (value: string): void => {
    text.value = value;
    active.value = -1;
    abort.current.abort();
    const controller = (abort.current = new AbortController());
    const words = value.trim();
    open.value = words !== "";
    if (!words) return;
    setTimeout(() => {
      if (controller.signal.aborted) return;
      searchLabels(words, controller.signal)
        .then((labels) => {
          found.value = labels;
          searched.value = words;
        })
        .catch((error: unknown) => isAbort(error) || report(error));
    }, DELAY);
  };
  const choose = (words: string): void => {
    if (!words.trim()) return;
    if (onlyClasses && !found.value.some((one) => one.label === words && one.askable)) return;
    onChoose(words, found.value);
    abort.current.abort();
    text.value = "";
    open.value = false;
    found.value = [];
  };
  const keys = (event: KeyboardEvent): void => {
    const count = found.value.length;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (!count) return;
      event.preventDefault();
      open.value = true;
      const step = event.key === "ArrowDown" ? 1 : -1;
      active.value = (active.value + step + count + (active.value < 0 && step < 0 ? 1 : 0)) % count;
    } else if (event.key === "Escape") {
      event.stopPropagation();
      open.value = false;
    } else if (event.key === "Enter") {
      event.preventDefault();
      const chosen = open.value ? found.value[active.value] : undefined;
      if (chosen?.askable) choose(chosen.label);
      else if (!chosen) choose(text.value);
    }
  };
  const isOpen = open.value && searched.value !== "";
  return (
    <div class="label-field" onFocusOut={(event) => inside(event) || (open.value = false)}>
      <label for={id}>{label}</label>
      <div class="line">
        <input
          id={id}
          type="text"
          role="combobox"
          autocomplete="off"
          spellcheck={false}
          placeholder={placeholder}
          maxLength={200}
          aria-expanded={isOpen}
          aria-controls={`${id}-list`}
          aria-autocomplete="list"
          aria-activedescendant={isOpen && active.value >= 0 ? `${id}-${active.value}` : undefined}
          value={text.value}
          onInput={(event) => search(event.currentTarget.value)}
          onKeyDown={keys}
        />
        <button type="button" onClick={() => choose(text.value)}>
          {submit}
        </button>
      </div>
      <div class="options" hidden={!isOpen}>
        <ul id={`${id}-list`} role="listbox" aria-label="Sounds with a name">
          {found.value.map((one, index) => (
            <li
              key={one.label}
              id={`${id}-${index}`}
              role="option"
              aria-selected={index === active.value}
              aria-disabled={!one.askable}
              onPointerDown={(event) => event.preventDefault()}
              onClick={() => one.askable && choose(one.label)}
            >
              <span>{one.label}</span>
              <span class="quiet clip">{one.askable ? one.path.at(-2) : whyNot(found.value)}</span>
            </li>
          ))}
        </ul>
        {!found.value.length && <p class="quiet">No sound has this name. Try other words, or point at it in the recording.</p>}
      </div>
    </div>
  );
}

function whyNot(found: Label[]): string {
  const near = found.filter((one) => one.askable).slice(0, 2);
  const instead = near.length ? ` Near it: ${near.map((one) => one.label).join(", ")}.` : "";
  return `The model knows it too little to be asked for it.${instead}`;
}

function inside(event: FocusEvent): boolean {
  const [field, next] = [event.currentTarget as Element, event.relatedTarget as Node | null];
  return next !== null && field.contains(next);
}
