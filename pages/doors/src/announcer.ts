// Speaks to screen readers: one voice for the page, so that three doors hearing one message do
// not read it out three times.

// Milliseconds to gather what happens together.
const PAUSE = 500;

export class Announcer {
  private pending: string[] = [];
  private timer = 0;

  constructor(private readonly region: HTMLElement) {}

  say(text: string): void {
    this.pending.push(text);
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => {
      this.region.textContent = this.pending.splice(0).join(" ");
    }, PAUSE);
  }
}
