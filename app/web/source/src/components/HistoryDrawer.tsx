// This browser's separations: open or delete one, and see until when its stems are kept.

import { isFinished } from "../api/follow";
import { history, type Entry } from "../state/history";
import { deleteSeparation, openSeparation } from "../state/separation";
import { Drawer, openDrawer } from "./Drawer";
import { Icon } from "./icons";

const WHEN = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

export function HistoryDrawer() {
  return (
    <Drawer title="History">
      <p class="quiet">What was separated in this browser. Press one to open it again; the bin deletes it with its stems.</p>
      <ul class="history">
        {history.value.map((entry) => (
          <Row key={entry.id} entry={entry} />
        ))}
        {!history.value.length && <li class="quiet">None yet.</li>}
      </ul>
    </Drawer>
  );
}

function Row({ entry }: { entry: Entry }) {
  const { origin, names } = entry;
  const title = origin.kind === "file" ? origin.name : origin.url;
  const open = (event: MouseEvent): void => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // in another tab
    event.preventDefault();
    openDrawer.value = null;
    window.history.replaceState(null, "", `#${entry.id}`);
    void openSeparation(entry.id);
  };
  return (
    <li class="line">
      <a class="history-link" href={`#${entry.id}`} onClick={open}>
        <strong class="clip">{title}</strong>
        <span class="clip">{names.join(", ")}</span>
        <span class="quiet">
          {isFinished(entry) ? entry.status : "started"}, {WHEN.format(new Date(entry.createdAt))}
          {expiry(entry)}
        </span>
      </a>
      <button
        type="button"
        class="icon-button"
        aria-label={`Delete ${title}: ${names.join(", ")}`}
        title="Delete it with its stems"
        onClick={() => void deleteSeparation(entry.id)}
      >
        <Icon name="trash" />
      </button>
    </li>
  );
}

function expiry({ expiresAt }: Entry): string {
  if (!expiresAt) return "";
  const hours = (Date.parse(expiresAt) - Date.now()) / 3_600_000;
  if (hours < 0) return ", expired";
  return hours < 48 ? `, kept for ${Math.max(1, Math.round(hours))} h` : `, kept for ${Math.round(hours / 24)} days`;
}
