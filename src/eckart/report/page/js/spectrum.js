// A spectrum in the browser, with the same arithmetic as `eckart.linalg.Spectrum`.
//
// Sums and comparisons use the same order of operations as the Python code, so that results are equal bit for bit: a
// complete spectrum is summed from the smallest value up, a partial one is subtracted from the exact norm.

export class Spectrum {
  /**
   * @param {Object} data the result of Python's `spectrum_data`.
   * @param {number[]} size [out_features, in_features].
   * @param {Float64Array} numbers the page's block.
   */
  constructor(data, size, numbers) {
    this.values = numbers.subarray(data.at, data.at + data.count);
    this.maxRank = Math.min(...size);
    this.fro = data.fro;
    this.tail = data.tail
      ? { ...data.tail, energy: numbers.subarray(data.tail.at, data.tail.at + data.count + 1) } : null;
    const [at, length] = data.rest ?? [0, 0];
    this.keptRanks = numbers.subarray(at, at + length);
    this.keptEnergies = numbers.subarray(at + length, at + 2 * length);
    this.known = this.tail ? this.headSums() : this.suffixSums(data.remains ?? 0);
    this.total = this.known[0];
  }

  /** Whether the page contains only some of the singular values. */
  get thinned() {
    return this.keptRanks.length > 0;
  }

  /** Squared error of the best approximation of each rank r = 0…count, for a complete spectrum. */
  suffixSums(remains) {
    const sums = new Float64Array(this.values.length + 1);
    sums[this.values.length] = remains;
    for (let r = this.values.length - 1; r >= 0; r -= 1) sums[r] = sums[r + 1] + this.values[r] * this.values[r];
    return sums;
  }

  /** Upper bound on the squared error at each rank r = 0…count, for a partial spectrum. */
  headSums() {
    const total = this.tail.total;
    const sums = new Float64Array(this.values.length + 1);
    let head = 0;
    sums[0] = total;
    for (let r = 1; r <= this.values.length; r += 1) {
      head += this.values[r - 1] * this.values[r - 1];
      sums[r] = total - (head - this.tail.rounding);
    }
    this.remainder = sums[this.values.length];
    return sums.map((sum) => Math.max(sum, 0));
  }

  /** Upper bound on the squared error of a rank; for a thinned spectrum, the error at the next lower rank on the page. */
  energyAbove(rank) {
    if (rank >= this.maxRank && !this.tail) return 0;
    const count = this.values.length;
    if (rank <= count) return this.known[rank];
    if (this.tail) {
      const rest = Math.max(this.maxRank - count, 1);
      return Math.max(this.remainder * (1 - Math.min(rank - count, rest) / rest), 0);
    }
    if (!this.thinned) return 0;
    const place = lastAtMost(this.keptRanks, rank);
    return place < 0 ? this.known[count] : this.keptEnergies[place];
  }

  /** Lower bound on the squared error of a rank; equal to `energyAbove` for a complete spectrum. */
  leastAbove(rank) {
    if (!this.tail) return this.energyAbove(rank);
    const count = this.values.length;
    const { total, energy, largest } = this.tail;
    if (rank <= count) return Math.max(total - energy[rank], 0);
    return Math.max(total - energy[count] - (rank - count) * largest, 0);
  }

  /** Upper bound on the relative error ‖W − W_r‖ / ‖W‖ at a rank. */
  error(rank) {
    return this.total > 0 ? Math.sqrt(this.energyAbove(rank) / this.total) : 0;
  }

  /** Lower bound on the share of ‖W‖² at a rank. */
  energy(rank) {
    return this.total > 0 ? (this.total - this.energyAbove(rank)) / this.total : 1;
  }

  /** [lower, upper] of the smallest rank with a relative error strictly below `error`; null for a zero matrix. */
  rankForError(error) {
    return this.firstRank((tail) => Math.sqrt(tail / this.total) < error);
  }

  /** [lower, upper] of the smallest rank that keeps `energy` of ‖W‖²; null for a zero matrix. */
  rankForEnergy(energy) {
    const allowed = energy < 1 ? this.total : 0;
    return this.firstRank((tail) => (this.total - tail) / this.total >= energy && tail <= allowed);
  }

  firstRank(enough) {
    if (!(this.fro > 0)) return null;
    const upper = this.search((rank) => enough(this.energyAbove(rank)));
    return [this.tail ? this.search((rank) => enough(this.leastAbove(rank))) : upper, upper];
  }

  /** The first rank on the page that meets a condition. */
  search(meets) {
    for (let r = 0; r <= this.values.length; r += 1) if (meets(r)) return r;
    if (this.thinned) return this.keptRanks.find((rank) => meets(rank)) ?? this.maxRank;
    for (let r = this.values.length + 1; r < this.maxRank; r += 1) if (meets(r)) return r;
    return this.maxRank;
  }
}

/** Index of the last of ascending numbers that is at most `limit`, or −1. */
function lastAtMost(numbers, limit) {
  let place = -1;
  while (place + 1 < numbers.length && numbers[place + 1] <= limit) place += 1;
  return place;
}
