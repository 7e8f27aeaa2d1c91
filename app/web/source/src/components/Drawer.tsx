// A dialog at the side of the window.

import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Icon } from "./icons";

export const openDrawer = signal<"request" | "history" | "keys" | null>(null);

export function Drawer({ title, children }: { title: string; children: ComponentChildren }) {
  const reference = useRef<HTMLDialogElement>(null);
  useEffect(() => reference.current?.showModal(), []);
  const close = (): void => void (openDrawer.value = null);
  return (
    <dialog
      class="drawer"
      aria-label={title}
      ref={reference}
      onClose={close}
      onClick={(event) => event.target === event.currentTarget && close()}
    >
      <div class="drawer-content">
        <div class="line">
          <h2>{title}</h2>
          <span class="spring" />
          <button type="button" class="icon-button" aria-label="Close" onClick={close}>
            <Icon name="close" />
          </button>
        </div>
        {children}
      </div>
    </dialog>
  );
}
