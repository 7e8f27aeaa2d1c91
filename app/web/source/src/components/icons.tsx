// Icons, 16 by 16, drawn with the colour of the text.

const PATHS = {
  play: "M4 2.5v11l9.5-5.5z",
  pause: "M4 3h3v10H4zM9 3h3v10H9z",
  close: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  trash: "M2.5 4h11M6 4V2.5h4V4M4 4l.7 9.5h6.6L12 4M6.8 6.5v4.5M9.2 6.5v4.5",
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  fit: "M2 4v8M14 4v8M4.5 8h7M6.5 6l-2 2 2 2M9.5 6l2 2-2 2",
  loop: "M11 2l2.5 2.5L11 7M13 4.5H5a2.5 2.5 0 0 0-2.5 2.5M5 14l-2.5-2.5L5 9M3 11.5h8A2.5 2.5 0 0 0 13.5 9",
  download: "M8 2v8M4.5 7L8 10.5 11.5 7M2.5 13.5h11",
  microphone: "M8 2a2 2 0 0 0-2 2v4a2 2 0 0 0 4 0V4a2 2 0 0 0-2-2zM3.5 8a4.5 4.5 0 0 0 9 0M8 12.5V15",
  file: "M4 1.5h5l3 3v10H4zM9 1.5v3h3",
  link: "M6.5 9.5l3-3M7 5l1.5-1.5a2.5 2.5 0 0 1 4 4L11 9M9 11l-1.5 1.5a2.5 2.5 0 0 1-4-4L5 7",
  span: "M3 3v10M13 3v10M3 8h10",
  bookmark: "M4 2h8v12L8 11l-4 3z",
  check: "M3 8.5L6.5 12 13 4.5",
  code: "M5 4L1.5 8 5 12M11 4l3.5 4L11 12",
  history: "M2.5 8a5.5 5.5 0 1 0 1.8-4.1L2.5 5.5M2.5 2v3.5H6M8 5v3l2 1.5",
} as const;

export type IconName = keyof typeof PATHS;

const FILLED: ReadonlySet<IconName> = new Set(["play", "pause"]);

export function Icon({ name }: { name: IconName }) {
  return (
    <svg class={FILLED.has(name) ? "icon filled" : "icon"} viewBox="0 0 16 16" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}
