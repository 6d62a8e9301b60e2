// What a reader leaves with: the command of a choice, and PEFT's rank_pattern.

/** The words of `--target` that take exactly some kinds; none where that is what the command does by itself. */
export function targetWords(analysis, kinds) {
  const { patterns, presets } = analysis.targets;
  const names = analysis.kinds.filter((_, kind) => kinds.has(kind));
  const preset = Object.entries(presets).find(([, of]) =>
    of.length === names.length && of.every((kind) => names.includes(kind)));
  if (preset) return preset[0] === "all-linear" ? [] : ["--target", preset[0]];
  return names.flatMap((name) => patterns[name]).flatMap((pattern) => ["--target", quoted(pattern)]);
}

/** The command that does what the page shows, or null where nothing can be extracted from the source. */
export function commandText(analysis, choice) {
  if (!analysis.command) return null;
  const noise = choice.mode === "noise";
  const words = [...analysis.command, "-o", noise ? "adapter-noise" : `adapter-${choice.mode}-${choice.value}`, `--${noise ? "rank" : choice.mode}`, choice.value];
  if (choice.mode === "gain") {
    const { metric, shared } = analysis.gain;
    words.push("--eval", "TEXT", ...(metric === "loss" ? [] : ["--metric", metric]), ...(shared ? ["--share"] : []));
  }
  if (analysis.kind !== "adapter") {
    words.push(...targetWords(analysis, choice.kinds));
    if (choice.dtype !== "float32") words.push("--dtype", choice.dtype);
  }
  return words.join(" ");
}

/** A word as a POSIX shell reads it back. */
export function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`;
}

/**
 * The part of a PEFT `LoraConfig` that says which module gets which rank; every scale is 1, as `eckart extract` writes.
 * @param {string[]} names of the modules.
 * @param {number[]} ranks of the same, each at least 1.
 */
export function rankPattern(names, ranks) {
  const counts = new Map();
  ranks.forEach((rank) => counts.set(rank, (counts.get(rank) ?? 0) + 1));
  const common = [...counts].reduce((best, one) => (one[1] > best[1] ? one : best), [1, 0])[0];
  const pattern = {};
  names.forEach((name, i) => {
    if (ranks[i] !== common) pattern[`^${escaped(name)}`] = ranks[i];
  });
  return { r: common, lora_alpha: common, target_modules: names, rank_pattern: pattern, alpha_pattern: { ...pattern } };
}

/** A name as a regex that matches it alone, as Python's `re.escape` writes it. */
function escaped(name) {
  return name.replace(/[()[\]{}?*+\-|^$\\.&~# \t\n\r\v\f]/g, "\\$&");
}
