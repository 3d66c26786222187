// Buttons that copy a text, and say so.

// Milliseconds for which a button shows what came of it.
const SHOWN = 2_000;

// What a screen reader is told; undefined until a button has the focus.
let announcer: HTMLElement | undefined;

/** Let a button copy what `text` returns; `name` is what a screen reader is told of it. */
export function copyButton(button: HTMLButtonElement, name: string, text: () => string): void {
  const label = button.textContent ?? "";
  const show = (words: string): void => {
    button.textContent = words;
    button.setAttribute("aria-label", `${words}: ${name}`);
  };
  show(label);
  let timer = 0;
  // It has to be there before it says something.
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
    // No permission, or no clipboard at all: browsers offer it on https and localhost only.
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
    // Deprecated, and the only way where there is no permission.
    return document.execCommand("copy");
  } finally {
    area.remove();
    button.focus();
  }
}
