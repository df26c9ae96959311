/* Numbers with their units, and instants in the reader's own time zone. */

const whole_ = new Intl.NumberFormat("en");
const short_ = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const compact_ = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const of = (options) => new Intl.DateTimeFormat("en-GB", { hourCycle: "h23", ...options });
const MINUTE = of({ day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
const SHORT = of({ day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const DAY = of({ day: "numeric", month: "short" });
const CLOCK = of({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const OFFSET = of({ timeZoneName: "shortOffset" });

const NONE = "–";
const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);
const date = (at) => new Date(typeof at === "number" ? at * 1000 : at);

export const whole = (value) => (known(value) ? whole_.format(value) : NONE);
export const short = (value) => (known(value) ? short_.format(value) : NONE);
export const compact = (value) => (known(value) ? (value < 10000 ? whole_.format(value) : compact_.format(value)) : NONE);
export const psi = (value) => (known(value) ? Math.max(0, value).toFixed(3) : NONE);
export const milliseconds = (us) => (known(us) ? short_.format(us / 1000) + " ms" : NONE);
export const chance = (p) => (!known(p) ? NONE : p < 1e-12 ? "below 1e-12" : p < 0.001 ? p.toExponential(1) : short_.format(p));

/** A share of a whole; small ones with as many digits as tell them from nothing. */
export function percent(share) {
  if (!known(share)) return NONE;
  if (share === 0) return "0 %";
  return share * 100 < 0.001 ? "< 0.001 %" : short_.format(Math.round(share * 1e5) / 1e3) + " %";
}
export const shareOf = (count, all) => (all ? percent(count / all) : NONE);

/* What an address says may be no instant. */
const written = (format) => (at) => (known(at) && known(date(at).getTime()) ? format.format(date(at)) : NONE);
export const when = written(MINUTE), shortly = written(SHORT), day = written(DAY), clock = written(CLOCK);
export const seconds = (iso) => new Date(iso).getTime() / 1000;

/** The ends of a window: times of day only where it is shorter than two days. */
export const between = (since, until) =>
  until - since >= 2 * 86400 ? `${day(since)} – ${day(until)}` : `${shortly(since)} – ${shortly(until)}`;

/** A length of time, in the largest unit of which it has at least two, or exactly one. */
export function lasting(s) {
  if (!known(s)) return NONE;
  for (const [unit, name] of [[86400, "day"], [3600, "hour"], [60, "minute"]])
    if (s >= 2 * unit || s === unit) return `${whole_.format(s < 10 * unit ? Math.round((s / unit) * 10) / 10 : Math.round(s / unit))} ${name}${s === unit ? "" : "s"}`;
  return `${short_.format(s)} s`;
}
export const since = (at) => lasting(Math.max(0, Math.round(Date.now() / 1000 - at)));
export const ago = (at) => (known(at) ? `${since(at)} ago` : NONE);

/** The zone in which all times stand. */
export function zone() {
  const parts = OFFSET.formatToParts(new Date());
  const offset = parts.find((part) => part.type === "timeZoneName").value.replace("GMT", "UTC");
  return `${Intl.DateTimeFormat().resolvedOptions().timeZone} (${offset})`;
}

export const words = (name) => String(name).replaceAll("_", " ");
export const plural = (count, one, many = one + "s") => `${whole(count)} ${count === 1 ? one : many}`;
