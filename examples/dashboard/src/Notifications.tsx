// Notifications posted to /api/notify, by this form or by anybody else; the server validates them.
import { type FormEvent, useState } from "react";
import { NOTIFY_URL } from "./addresses";
import type { Level, Notification } from "./useDashboard";

const LEVELS: Record<Level, string> = { info: "Info", success: "Success", warning: "Warning", error: "Error" };
// Milliseconds.
const PATIENCE = 10_000;

interface Outcome {
  kind: "sending" | "sent" | "failed";
  text: string;
  /** What the server did not like. */
  field?: string;
}

export function Notifications({ notifications }: { notifications: readonly Notification[] }): React.ReactElement {
  return (
    <section className="notifications" aria-labelledby="notifications-title">
      <h2 id="notifications-title">Notifications</h2>
      <NotifyForm />
      <div className="log" role="log" aria-label="Notifications" tabIndex={0}>
        <ol>
          {notifications.length === 0 && <li className="empty">None yet. Send one: everybody watching gets it.</li>}
          {notifications.toReversed().map(({ offset, level, title, message, time }) => (
            <li key={offset} data-level={level} data-testid="notification">
              <p className="head">
                <span className="level">{LEVELS[level]}</span>
                <time dateTime={new Date(time * 1_000).toISOString()}>
                  {new Date(time * 1_000).toLocaleTimeString()}
                </time>
              </p>
              {title !== "" && <strong>{title}</strong>}
              <p className="message">{message}</p>
            </li>
          ))}
        </ol>
      </div>
    </section>
  );
}

function NotifyForm(): React.ReactElement {
  const [outcome, setOutcome] = useState<Outcome>();

  async function send(event: FormEvent<HTMLFormElement>): Promise<void> {
    event.preventDefault();
    const form = event.currentTarget;
    setOutcome({ kind: "sending", text: "Sending…" });
    const answer = await post(Object.fromEntries(new FormData(form)));
    setOutcome(answer);
    if (answer.kind === "sent") {
      form.reset();
    } else if (answer.field !== undefined) {
      const field = form.elements.namedItem(answer.field);
      if (field instanceof HTMLElement) field.focus();
    }
  }

  const invalid = (field: string): { "aria-invalid"?: true; "aria-describedby"?: string } =>
    outcome?.field === field ? { "aria-invalid": true, "aria-describedby": "notify-outcome" } : {};

  return (
    <form className="notify" onSubmit={(event) => void send(event)} autoComplete="off" noValidate>
      <label>
        Message
        <textarea name="message" rows={2} {...invalid("message")} data-testid="message" />
      </label>
      <label>
        Title (optional)
        <input name="title" {...invalid("title")} data-testid="title" />
      </label>
      <label>
        Level
        <select name="level" {...invalid("level")} data-testid="level">
          {Object.entries(LEVELS).map(([level, name]) => (
            <option key={level} value={level}>
              {name}
            </option>
          ))}
        </select>
      </label>
      <button type="submit" data-testid="notify">
        Notify everybody
      </button>
      <p className="outcome" id="notify-outcome" role="status" data-kind={outcome?.kind} data-testid="outcome">
        {outcome?.text}
      </p>
    </form>
  );
}

async function post(notification: Record<string, unknown>): Promise<Outcome> {
  try {
    const response = await fetch(NOTIFY_URL, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(notification),
      signal: AbortSignal.timeout(PATIENCE),
    });
    const answer = (await response.json()) as Record<string, unknown>;
    if (response.ok) {
      const clients = Number(answer["clients"]);
      return { kind: "sent", text: `Sent to ${clients} ${clients === 1 ? "page" : "pages"}.` };
    }
    const { field, reason, error } = answer;
    return {
      kind: "failed",
      text: `Not sent: ${typeof field === "string" ? `${field}: ` : ""}${String(reason ?? error)} (${response.status})`,
      ...(typeof field === "string" && { field }),
    };
  } catch {
    return { kind: "failed", text: "Not sent: the server does not respond." };
  }
}
