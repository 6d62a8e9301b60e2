// The ranks, size and error that a choice gives, per matrix and in total, as `eckart extract` and `eckart resize` do.

import { allocate, inOrder, largestBudget } from "./allocation.js";

export const ITEM_BYTES = { float32: 4, bfloat16: 2, float16: 2 };
export const HEADER_BYTES = 512; // of a budget in bytes: the file's header, for the tensors of one layer

/**
 * @typedef {Object} Choice
 * @property {"rank"|"energy"|"error"|"budget"|"noise"|"gain"} mode
 * @property {number|string} value of a budget the text that the command is given, such as "20MB".
 * @property {Object} [stop] in mode "gain" the measured rank.
 * @property {Set<number>} kinds of the matrices that are taken, by their place in the analysis.
 * @property {string} dtype that factors are written in.
 */

/** The numbers of a choice for an analysis with its spectra. */
export class Chooser {
  constructor(analysis, spectra) {
    this.analysis = analysis;
    this.spectra = spectra;
    this.isAdapter = analysis.kind === "adapter";
    this.cache = new Map();
  }

  /** Places of the matrices of some kinds, what one rank of each costs, and the order in which a budget takes them. */
  taken(kinds) {
    const key = [...kinds].sort((a, b) => a - b).join();
    if (!this.cache.has(key)) {
      const places = this.analysis.matrices.flatMap((matrix, i) => (kinds.has(matrix.kind) ? [i] : []));
      const spectra = places.map((i) => this.spectra[i]);
      const costs = places.map((i) => this.cost(i));
      this.cache.set(key, { places, spectra, costs, items: null });
    }
    return this.cache.get(key);
  }

  cost(i) {
    const [rows, columns] = this.analysis.matrices[i].shape;
    return rows + columns;
  }

  /** The order in which a budget takes single ranks: sorted once for a set of kinds. */
  items(taken) {
    taken.items ??= inOrder(taken.spectra, taken.costs);
    return taken.items;
  }

  /** Parameters of factors that fit a budget as it is typed: bytes (20MB), of which headers take some, or not (5M). */
  params(text, taken, dtype) {
    const amount = parseBudget(text);
    if (!text.toUpperCase().endsWith("B")) return amount;
    return Math.floor(Math.max(0, amount - HEADER_BYTES * taken.places.length) / ITEM_BYTES[dtype]);
  }

  /** The largest budget, in parameters, that is certain with the values at hand. */
  largestBudget(kinds) {
    const taken = this.taken(kinds);
    return largestBudget(taken.spectra, taken.costs, this.items(taken));
  }

  /**
   * @param {Choice} choice
   * @returns {{ranks: (number|null)[], params: number, bytes: number, error: number, energy: number, whole: number, bounded: boolean,
   *   allocation: Object|null}} `ranks` has null for a matrix that is not taken; `bounded` where a rank is only known
   *   to be enough.
   */
  choose(choice) {
    const taken = this.taken(choice.kinds);
    const ranks = new Array(this.spectra.length).fill(null);
    let allocation = null;
    let bounded = false;
    if (choice.mode === "budget") {
      const budget = this.params(choice.value, taken, choice.dtype);
      allocation = allocate(taken.spectra, taken.costs, this.items(taken), budget);
      taken.places.forEach((i, place) => { ranks[i] = allocation.ranks[place]; });
      bounded = !allocation.certain;
    } else {
      for (const i of taken.places) {
        const [lower, upper] = this.rankLimits(i, choice);
        ranks[i] = upper;
        bounded ||= lower !== upper;
      }
      if (this.isAdapter && choice.mode !== "rank" && choice.mode !== "gain") this.level(taken.places, ranks);
    }
    return { ranks, allocation, bounded, ...this.totals(taken, ranks, choice.dtype) };
  }

  /** [lower, upper] limit of the rank that a rule asks of one matrix. */
  rankLimits(i, { mode, value, stop }) {
    const spectrum = this.spectra[i];
    if (mode === "noise") return twice(this.analysis.matrices[i].noise?.signal_rank ?? 0);
    if (mode === "gain") return twice(stop.ranks ? stop.ranks[this.analysis.matrices[i].name] ?? 0 : Math.min(stop.rank, this.highest(i)));
    if (mode === "rank") {
      const rank = this.isAdapter ? value : spectrum.fro > 0 ? Math.min(value, spectrum.maxRank) : 0;
      return [rank, rank];
    }
    const limits = mode === "energy" ? spectrum.rankForEnergy(value) : spectrum.rankForError(value);
    if (limits === null) return [0, 0];
    return this.isAdapter ? limits : limits.map((rank) => Math.max(1, rank));
  }

  /** The highest rank that a truncation of matrix i has: for a layer of an adapter, that of its factors. */
  highest(i) {
    const spectrum = this.spectra[i];
    return this.isAdapter ? spectrum.values.length : spectrum.fro > 0 ? spectrum.maxRank : 0;
  }

  /** Experts of one parameter get one rank, the highest that any of them needs. */
  level(places, ranks) {
    const highest = new Map();
    const parameter = (i) => this.analysis.matrices[i].name.split("[")[0];
    for (const i of places) highest.set(parameter(i), Math.max(highest.get(parameter(i)) ?? 0, ranks[i]));
    for (const i of places) ranks[i] = highest.get(parameter(i));
  }

  /** Parameters, bytes and error of all chosen matrices; errors add up in squares. */
  totals(taken, ranks, dtype) {
    let params = 0;
    let missed = 0;
    let all = 0;
    taken.places.forEach((i, place) => {
      params += ranks[i] * taken.costs[place];
      missed += this.spectra[i].energyAbove(ranks[i]);
      all += this.spectra[i].total;
    });
    return {
      params,
      whole: all,
      bytes: params * ITEM_BYTES[dtype],
      error: all > 0 ? Math.sqrt(missed / all) : 0,
      energy: all > 0 ? (all - missed) / all : 1,
    };
  }
}

const twice = (rank) => [rank, rank];

/** A budget as `--budget` reads it: k, M and G are powers of 1000. */
export function parseBudget(text) {
  const [, number, unit] = /^(\d+(?:\.\d+)?)\s*([kmg]?)b?$/i.exec(text.trim());
  return Math.trunc(parseFloat(number) * { "": 1, k: 1e3, m: 1e6, g: 1e9 }[unit.toLowerCase()]);
}

const MANTISSAS = [
  ...["1", "1.1", "1.2", "1.3", "1.5", "1.6", "1.8", "2", "2.2", "2.4", "2.7", "3", "3.3", "3.6", "3.9", "4.3"],
  ...["4.7", "5.1", "5.6", "6.2", "6.8", "7.5", "8.2", "9.1"],
];

/** Budgets as one types them, from the first that holds `least` to the last that does not exceed `most`. */
export function budgetStops(least, most, unit) {
  const stops = [];
  for (const [scale, prefix] of [[1, ""], [1e3, "k"], [1e6, "M"], [1e9, "G"]]) {
    for (const ten of ["", "0", "00"]) {
      for (const mantissa of MANTISSAS) {
        const [ones, tenths = ""] = mantissa.split(".");
        const number = ten === "" ? mantissa : ten === "0" ? `${ones}${tenths || "0"}` : `${ones}${tenths || "0"}0`;
        const amount = Math.trunc(parseFloat(number) * scale);
        if (amount >= least && amount <= most) stops.push([amount, `${number}${prefix}${unit}`]);
      }
    }
  }
  return [...new Map(stops).values()];
}
