// The header that all pages of the demo share; the build puts it into each page's HTML.
import type { Plugin } from "vite";

const PAGES = { start: "Start", doors: "Three doors", chat: "Chat", dashboard: "Dashboard" } as const;
const PLACE = "<!-- masthead -->";

export type PageName = keyof typeof PAGES;

/** Replace the comment with the header. `alone`: the page is served without the others. */
export function masthead(current: PageName, { alone = false } = {}): Plugin {
  return {
    name: "crossband-masthead",
    transformIndexHtml: {
      order: "pre",
      handler(html) {
        if (!html.includes(PLACE)) throw new Error(`the page ${current} has no ${PLACE}`);
        return html.replace(PLACE, render(current, alone));
      },
    },
  };
}

function render(current: PageName, alone: boolean): string {
  const root = current === "start" ? "./" : "../";
  const links = (Object.keys(PAGES) as PageName[]).map((name) => {
    const href = name === current ? "./" : name === "start" ? root : `${root}${name}/`;
    return `<a href="${href}"${name === current ? ' aria-current="page"' : ""}>${PAGES[name]}</a>`;
  });
  return `<a class="skip" href="#main">Skip to the page</a>
    <header class="masthead" data-testid="masthead">
      <p class="brand">
        <svg class="logo" viewBox="0 0 48 48" aria-hidden="true">
          <path class="band-1" d="M4 12h40" />
          <path class="band-2" d="M4 24h40" />
          <path class="band-3" d="M4 36h40" />
          <path class="crossing" d="M24 4v40" />
          <circle cx="24" cy="24" r="5.5" />
        </svg>
        Crossband
      </p>
      ${alone ? "" : `<nav class="pages" aria-label="Demo">${links.join("")}</nav>`}
      <div class="here" id="here"></div>
    </header>`;
}
