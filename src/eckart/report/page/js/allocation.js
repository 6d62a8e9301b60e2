// One budget for many matrices: the rule of `eckart.linalg.allocate`, step by step, so that both choose alike.

/**
 * Single ranks of all matrices, those that keep most energy for their parameters first.
 * @param {Spectrum[]} spectra
 * @param {number[]} costs parameters of one rank of each.
 * @returns {{owners: Uint32Array, densities: Float64Array}} in the order in which they are taken.
 */
export function inOrder(spectra, costs) {
  const length = spectra.reduce((sum, spectrum) => sum + spectrum.values.length, 0);
  const owners = new Uint32Array(length);
  const densities = new Float64Array(length);
  let at = 0;
  spectra.forEach((spectrum, owner) => {
    for (const value of spectrum.values) {
      owners[at] = owner;
      densities[at] = (value * value) / costs[owner];
      at += 1;
    }
  });
  const order = new Uint32Array(length).map((_, place) => place);
  order.sort((a, b) => densities[b] - densities[a] || a - b); // equal ones in the order of the matrices
  return { owners: owners.map((_, i) => owners[order[i]]), densities: densities.map((_, i) => densities[order[i]]) };
}

/**
 * Ranks that share a budget so that the energy kept is greatest.
 * @returns {{ranks: number[], params: number, gap: number, certain: boolean}} `gap` is energy that no other choice
 *   can gain over this one; not `certain` where a value that is not here might have been chosen.
 */
export function allocate(spectra, costs, items, budget) {
  const ranks = new Array(spectra.length).fill(0);
  let left = budget;
  let best = 0;
  let barred = null;
  for (let i = 0; i < items.owners.length; i += 1) {
    const owner = items.owners[i];
    const density = items.densities[i];
    if (density === 0) break;
    if (costs[owner] <= left) {
      ranks[owner] += 1;
      left -= costs[owner];
      best -= barred === null ? 0 : density * costs[owner];
    } else if (barred === null) {
      barred = density;
      best = density * left;
    }
  }
  const limit = barred ?? 0;
  const settled = (spectrum, i) => spectrum.tail === null || (1 / costs[i]) * spectrum.tail.largest <= limit;
  const equal = new Set(costs).size <= 1;
  let gap = equal || barred === null ? 0 : Math.max(0, best);
  gap += spectra.reduce((sum, spectrum) => sum + openEnergy(spectrum), 0);
  const exhausted = spectra.some((spectrum, i) => spectrum.thinned && ranks[i] === spectrum.values.length);
  return { ranks, params: budget - left, gap, certain: spectra.every(settled) && !exhausted };
}

/** The largest budget whose choice needs no value that the page does not carry. */
export function largestBudget(spectra, costs, items) {
  const taken = new Array(spectra.length).fill(0);
  let params = 0;
  for (const owner of items.owners) {
    if (spectra[owner].thinned && taken[owner] === spectra[owner].values.length - 1) break;
    taken[owner] += 1;
    params += costs[owner];
  }
  return params;
}

/** Energy by which the values of a partial spectrum may misjudge what a number of ranks keeps. */
function openEnergy(spectrum) {
  if (spectrum.tail === null) return 0;
  let most = -Infinity;
  let kept = 0;
  spectrum.values.forEach((value, i) => {
    kept += value * value;
    most = Math.max(most, spectrum.tail.energy[i + 1] - kept);
  });
  return most + spectrum.tail.rounding;
}
