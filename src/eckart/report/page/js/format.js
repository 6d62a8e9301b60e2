// Numbers as text.

const GROUPED = new Intl.NumberFormat("en-US");

/** An integer with separated thousands: 1,843,200. */
export const whole = (number) => GROUPED.format(number);

/** Three digits: 0.123, 12.3, 1.23e-7. */
export function digits(number, most = 3) {
  if (number === null || number === undefined || Number.isNaN(number)) return "–";
  if (number === 0) return "0";
  const size = Math.abs(number);
  if (size >= 1e5 || size < 1e-3) return number.toExponential(most - 1).replace("e+", "e");
  return String(Number(number.toPrecision(most)));
}

/** A number that fits into a cell of a map: two decimals below one, else two digits: .14, -.02, 3.4, 340. */
export function inCell(number) {
  if (number === null || Math.abs(number) >= 0.995) return digits(number, 2);
  return Math.abs(number) < 0.005 ? "0" : number.toFixed(2).replace("0.", ".");
}

/** A share in percent, with enough digits to distinguish 99.9 from 100; one at the level of rounding as a bound. */
export function percent(share, most = 3) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  if (share !== 0 && Math.abs(share) < 1e-5) return "< 0.001%";
  return `${digits(100 * share, most)}%`;
}

/** Bytes in decimal units, as disks and model cards count them. */
export function bytes(count) {
  let size = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (size < 1000) return unit === "B" ? `${size} B` : `${Number(size.toPrecision(3))} ${unit}`;
    size /= 1000;
  }
  return `${Number(size.toPrecision(3))} TB`;
}

/** A number of parameters: 576, 135 M. */
export function count(number) {
  for (const [size, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= 0.9995 * size) return `${Number((number / size).toPrecision(3))} ${unit}`;
  }
  return String(number);
}

/** Seconds: 0.8 s, 75 s, 12 min, 3.4 h. */
export function seconds(time) {
  if (time === null || time === undefined) return "–";
  if (time < 100) return `${Number(time.toPrecision(2))} s`;
  return time < 5400 ? `${Math.round(time / 60)} min` : `${(time / 3600).toFixed(1)} h`;
}

/** A statistic that may be a pair of limits, or undefined. */
export function bounded(number) {
  return Array.isArray(number) ? `${digits(number[0])}–${digits(number[1])}` : digits(number);
}

/** The number itself, or the upper one of its limits. */
export const upper = (number) => (Array.isArray(number) ? number[1] : number);

export const shape = (sizes) => sizes.join("×");

export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (!sorted.length) return null;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
