// A text field for what a sound is, completed from the classes that can be asked for by name (ARIA's combobox).

import { useSignal } from "@preact/signals";
import { useEffect, useId, useRef } from "preact/hooks";
import { isAbort } from "../api/client";
import type { Label, LabelSearch } from "../api/types";
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
  const search = useSignal<{ words: string; found: LabelSearch } | null>(null); // the latest that was answered
  const active = useSignal(-1);
  const open = useSignal(false);
  const abort = useRef(new AbortController());
  useEffect(() => () => abort.current.abort(), []);

  const options = search.value?.found.data ?? [];
  const isOpen = open.value && search.value !== null;
  const refusal = search.value?.found.refusal ?? null;

  const change = (value: string): void => {
    text.value = value;
    active.value = -1;
    abort.current.abort();
    const { signal } = (abort.current = new AbortController());
    const words = value.trim();
    open.value = words !== "";
    if (!words) return;
    setTimeout(() => {
      if (signal.aborted) return;
      searchLabels(words, signal)
        .then((found) => (search.value = { words, found }))
        .catch((error: unknown) => isAbort(error) || report(error));
    }, DELAY);
  };
  const choose = (words: string): void => {
    if (!words.trim()) return;
    const isClass =
      options.some((one) => one.label === words && one.askable) || search.value?.found.near.includes(words);
    if (!isClass && (onlyClasses || (search.value?.words === words.trim() && refusal !== null))) {
      open.value = true; // it says why not
      return;
    }
    abort.current.abort();
    onChoose(words, isClass ? [{ label: words, path: [words], askable: true, slug: "", reason: null }] : options);
    text.value = "";
    open.value = false;
    search.value = null;
  };
  const press = (event: KeyboardEvent): void => {
    const count = options.length;
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
      const chosen = open.value ? options[active.value] : undefined;
      if (!chosen || chosen.askable) choose(chosen?.label ?? text.value);
    }
  };
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
          onInput={(event) => change(event.currentTarget.value)}
          onKeyDown={press}
        />
        <button type="button" onClick={() => choose(text.value)}>
          {submit}
        </button>
      </div>
      <div class="options" hidden={!isOpen}>
        <ul id={`${id}-list`} role="listbox" aria-label="Sounds with a name">
          {options.map((one, index) => (
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
              <span class="quiet clip">{one.reason ?? one.path.at(-2)}</span>
            </li>
          ))}
        </ul>
        {refusal !== null && !onlyClasses && (
          <Refusal text={refusal} near={search.value?.found.near ?? []} onChoose={choose} />
        )}
      </div>
    </div>
  );
}

/** Why what was typed cannot be asked for, and what can be in its place. */
function Refusal({ text, near, onChoose }: { text: string; near: string[]; onChoose: (label: string) => void }) {
  return (
    <div class="refusal" role="status" onPointerDown={(event) => event.preventDefault()}>
      <p class="quiet">{text}</p>
      {near.map((label) => (
        <button key={label} type="button" class="small" onClick={() => onChoose(label)}>
          {label}
        </button>
      ))}
    </div>
  );
}

function inside(event: FocusEvent): boolean {
  const [field, next] = [event.currentTarget as Element, event.relatedTarget as Node | null];
  return next !== null && field.contains(next);
}
