// Buttons that copy a text and confirm it.

// Milliseconds for which a button shows the result.
const SHOWN = 2_000;

// The live region for screen readers; undefined until a button has the focus.
let announcer: HTMLElement | undefined;

/** Make a button copy what `text` returns; `name` describes it to screen readers. */
export function copyButton(button: HTMLButtonElement, name: string, text: () => string): void {
  const label = button.textContent ?? "";
  const show = (words: string): void => {
    button.textContent = words;
    button.setAttribute("aria-label", `${words}: ${name}`);
  };
  show(label);
  let timer = 0;
  // The region must exist before its text changes.
  button.addEventListener("focus", () => (announcer ??= createAnnouncer()));
  button.addEventListener("click", () => {
    void copy(text(), button).then((copied) => {
      show(copied ? "Copied" : "Not copied");
      announcer ??= createAnnouncer();
      announcer.textContent = copied ? `Copied: ${name}` : "Not copied: select the text, and copy it by hand";
      clearTimeout(timer);
      timer = window.setTimeout(() => {
        show(label);
        if (announcer !== undefined) announcer.textContent = "";
      }, SHOWN);
    });
  });
}

function createAnnouncer(): HTMLElement {
  const region = document.createElement("p");
  region.className = "unseen";
  region.setAttribute("role", "status");
  document.body.append(region);
  return region;
}

async function copy(text: string, button: HTMLElement): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // No permission, or no clipboard: browsers offer it only on https and localhost.
    return copyBySelection(text, button);
  }
}

function copyBySelection(text: string, button: HTMLElement): boolean {
  const area = document.createElement("textarea");
  area.value = text;
  area.readOnly = true;
  area.className = "unseen";
  document.body.append(area);
  area.select();
  try {
    // Deprecated, but the only way without permission.
    return document.execCommand("copy");
  } finally {
    area.remove();
    button.focus();
  }
}
