// A button that opens the browser's file chooser.

import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

export const ACCEPT = "audio/*,video/*,.flac,.wav,.mp3,.ogg,.opus,.m4a,.aiff";

interface Props {
  accept: string;
  multiple?: boolean;
  class?: string;
  onFiles: (files: { blob: Blob; name: string }[]) => void;
  children: ComponentChildren;
}

export function FileButton({ accept, multiple = false, class: name = "", onFiles, children }: Props) {
  const id = useId();
  return (
    <>
      <input
        id={id}
        type="file"
        class="hidden-file"
        accept={accept}
        multiple={multiple}
        onChange={({ currentTarget }) => {
          const files = [...(currentTarget.files ?? [])].map((file) => ({ blob: file, name: file.name }));
          currentTarget.value = ""; // so that the same file can be chosen again
          if (files.length) onFiles(files);
        }}
      />
      <label for={id} class={`button ${name}`}>
        {children}
      </label>
    </>
  );
}
