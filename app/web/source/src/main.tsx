import { render } from "preact";
import { App } from "./components/App";
import { listenToKeys } from "./components/keyboard";
import { loadBundledExamples } from "./state/bundled_examples";
import { openSeparation } from "./state/separation";
import "./page.css";

const JOB = /^#(sep_\w+)$/;

function openLinked(): void {
  const id = JOB.exec(location.hash)?.[1];
  if (id) void openSeparation(id);
}

const root = document.getElementById("page");
if (root) {
  root.replaceChildren();
  render(<App />, root);
  listenToKeys();
  openLinked();
  window.addEventListener("hashchange", openLinked);
  void loadBundledExamples();
}
