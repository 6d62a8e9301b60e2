// One budget for many matrices: the algorithm of `eckart.linalg.allocate`, so that both choose the same ranks.

/**
 * Single ranks of all matrices, in descending order of energy per parameter.
 * @param {Spectrum[]} spectra
 * @param {number[]} costs parameters of one rank of each matrix.
 * @returns {{owners: Uint32Array, densities: Float64Array}} matrix index and energy per parameter of each rank.
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
 * The ranks within a budget that capture the most energy.
 * @returns {{ranks: number[], params: number, gap: number, certain: boolean}} no other choice captures more than `gap`
 *   additional energy; `certain` is false if a singular value that is not on the page might have been chosen.
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

/** The largest budget for which the page contains every singular value that the choice needs. */
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

/** Largest error of a partial spectrum in the energy of its leading ranks. */
function openEnergy(spectrum) {
  if (spectrum.tail === null) return 0;
  let most = -Infinity;
  let energy = 0;
  spectrum.values.forEach((value, i) => {
    energy += value * value;
    most = Math.max(most, spectrum.tail.energy[i + 1] - energy);
  });
  return most + spectrum.tail.rounding;
}
