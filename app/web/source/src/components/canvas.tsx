// A canvas that is painted again whenever its size, the theme, or a signal that it shows changes.

import { effect, signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

export interface Surface {
  context: CanvasRenderingContext2D;
  width: number; // in device pixels
  height: number;
  scale: number; // device pixels of a CSS pixel
  colour: (value: string) => string; // resolves `var(--name)`
}

const theme = signal(0);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme.value++);

interface Props {
  paint: (surface: Surface) => void;
  class?: string;
}

export function Canvas({ paint, class: name }: Props) {
  const reference = useRef<HTMLCanvasElement>(null);
  const latest = useRef(signal(paint));
  latest.current.value = paint;
  useEffect(() => {
    const canvas = reference.current;
    const context = canvas?.getContext("2d");
    if (!canvas || !context) return;
    const size = signal({ width: 0, height: 0 });
    const observer = new ResizeObserver(([entry]) => {
      const scale = devicePixelRatio;
      const box = entry?.contentRect;
      if (box) size.value = { width: Math.round(box.width * scale), height: Math.round(box.height * scale) };
    });
    observer.observe(canvas);
    const stop = effect(() => {
      const { width, height } = size.value;
      void theme.value;
      if (!width || !height) return;
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      else context.clearRect(0, 0, width, height);
      const style = getComputedStyle(canvas);
      const colour = (value: string): string => {
        const variable = /^var\((.+)\)$/.exec(value)?.[1];
        return variable ? style.getPropertyValue(variable).trim() : value;
      };
      latest.current.value({ context, width, height, scale: devicePixelRatio, colour });
    });
    return () => {
      stop();
      observer.disconnect();
    };
  }, []);
  return <canvas ref={reference} class={name} aria-hidden="true" />;
}
