// Announces events to screen readers, once for the page, so that a message that arrives over
// three doors is not read out three times.

// Milliseconds for which simultaneous events are collected.
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
